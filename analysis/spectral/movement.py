"""How far the weights of a layer have moved: since their initialisation, and since the last checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from scalespec.analysis.spectral import esd
from scalespec.analysis.spectral.esd import Array
from scalespec.analysis.spectral.power_law import hill


def movement(
    weight: Array, kind: str, init: Array | None, previous: Array | None, *, precision: str, device: str
) -> dict[str, Any]:
    """Distance from initialisation and its largest singular value, and the spectrum of the update since the last checkpoint.

    Norms are those of the tensor itself, whatever the profile does to its eigenvalues. Raises ValueError for other shapes.
    """
    row: dict[str, Any] = {}
    for name, reference in (("init", init), ("update", previous)):
        if reference is None:
            continue
        if reference.shape != weight.shape:
            raise ValueError(f"weights of shape {weight.shape} cannot be compared with {reference.shape}")
        change = weight.astype(np.float64) - reference
        base = float(np.linalg.norm(reference))
        ratio = float(np.linalg.norm(change)) / base if base > 0 else None
        row["distance_from_init" if name == "init" else "update_norm"] = ratio
        try:
            values = esd.pooled(esd.layer(change, kind, esd.NATIVE), precision=precision, device=device)
        except esd.NonFiniteError:
            continue
        row[f"{name}_sigma_max"] = float(values[-1]) ** 0.5
        if name == "update" and values[-1] > 0:
            row["update_stable_rank"] = float(values.sum() / values[-1])
            row["update_alpha_hill"] = hill(values[values > len(values) * np.finfo(np.float64).eps * values[-1]])
    return row
