"""One layer to one row: the columns of `analysis.tables.SPECTRA` that concern its spectrum.

Two profiles, never mixed. `ww-0.7.7` has WeightWatcher's conventions, quirks included: pooled convolutions at half their
eigenvalues, a fit cut at 1e-5 absolute, the left-sided distance, matrices left out that its defaults leave out. `native` has
true eigenvalues, a cut relative to the largest one, matrices of any size, and beside WeightWatcher's estimator (which it
applies to those eigenvalues) the corrected fit `alpha_ks2`: two-sided distance, tail of at least 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from analysis.spectral import esd, metrics, power_law, random_matrix
from analysis.spectral.esd import NATIVE, WW, Array, Layer, NonFiniteError, Spectrum, SpectrumError
from analysis.spectral.power_law import Floats
from analysis.spectral.trust import judge
from analysis.spectral.vectors import vector_metrics

Row = dict[str, Any]

WW_MIN_EVALS, WW_MAX_EVALS, WW_MAX_N = 8, 15_000, 50_000
"""Outside these WeightWatcher's defaults skip a layer without a word, the token embedding of GPT-2 among them."""

NATIVE_MIN_EVALS = 20
"""Fewer values than the smallest tail that a trusted fit may have: norms only."""

FEW, REPLICAS = 100, 5
"""Below 100 values WeightWatcher pools five shuffles before it counts correlation traps."""


def analyze(
    weight: Array,
    *,
    kind: str,
    profile: str = WW,
    randomize: bool = True,
    trust: bool = True,
    vectors: bool = False,
    seed: int = 0,
    init: Array | None = None,
    previous: Array | None = None,
    keep_eigenvalues: bool = True,
    bulk: bool | None = None,
    windows: bool = False,
    precision: str = "float64",
    device: str = "auto",
) -> Row:
    """The row of one weight tensor (see `esd.layer` for shapes); columns that were not asked for are absent.

    `randomize` adds the shuffled spectrum (`seed` decides it), `bulk` the Marchenko–Pastur fit and the trace-log condition
    (default: with `randomize` or `trust`), `trust` the verdict, `vectors` the eigenvectors, `windows` windows of one aspect
    ratio, `init` and `previous` the movement since those weights of the same shape. `precision` is that of the Gram matrix
    and its eigenvalues; `device` auto takes a GPU where there is one. Bad weights are rows with a `status` and an `error`;
    only an unknown kind, profile, precision or device raises SpectrumError.
    """
    if precision not in ("float64", "float32"):
        raise SpectrumError(f"precision {precision!r} is none of float64, float32")
    weight = _floating(weight)
    try:
        layer = esd.layer(weight, kind, profile)
    except SpectrumError as error:
        if weight.ndim in (2, 3, 4) and kind not in esd.KINDS or profile not in esd.PROFILES:
            raise
        return _failed(weight, kind, profile, "too_small", str(error))
    row: Row = {"profile": profile, "kind": kind, "rows": layer.N, "cols": layer.M, "matrices": len(layer.stack)}
    refusal = _refusal(layer, profile)
    if refusal:
        return row | refusal
    try:
        spectrum = esd.spectrum(layer, precision=precision, device=device)
    except NonFiniteError:
        return _not_finite(row, weight, layer, device) or analyze_again(...)
    return row
