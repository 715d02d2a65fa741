"""Known surfaces and tables for the tests of laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

EPOCH = {"E": 1.8172, "A": 477.8, "B": 2143.0, "alpha": 0.3473, "beta": 0.3672}
"""https://arxiv.org/abs/2404.10102, refitted by the published rule."""


def read(shared: Path, name: str) -> pd.DataFrame:
    file = shared / "data/scaling" / name
    if not file.is_file():
        pytest.skip(f"{file.name} not found under SCALESPEC_SHARED")
    return pd.read_csv(file)


def grid_runs(widths: int = 6, fractions: int = 5, seeds: int = 3, noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """A study's runs table over `EPOCH`'s surface; half of the variance of the noise is shared by a family."""
    rng = np.random.default_rng(seed)
    rows = []
    for w in range(widths):
        for s in range(seeds):
            shared = rng.standard_normal()
            for f in range(fractions):
                n, d = 2e7 * 2**w, 6.4e9 / 2**f
                loss = EPOCH["E"] + EPOCH["A"] * n ** -EPOCH["alpha"] + EPOCH["B"] * d ** -EPOCH["beta"]
                shake = noise * np.sqrt(0.5) * (shared + rng.standard_normal())
                rows.append(
                    {
                        "run_key": f"w{w}-f{f}-s{s}",
                        "family_key": f"w{w}-s{s}",
                        "width": 2**w,
                        "data_fraction": 2.0**-f,
                        "seed": s,
                        "batch_size": 16,
                        "params_matmul": int(n),
                        "params_total": int(1.5 * n),
                        "params_embedding": int(0.5 * n**0.9),
                        "samples": int(d),
                        "flops_train": 6.3 * n * d,
                        "flops_matmul": 6.0 * n * d,
                        "flops_causal": 6.15 * n * d,
                        "val_loss": loss * np.exp(shake),
                        "val_accuracy": 0.9 - 0.1 * loss,
                        "status": "done",
                        "error": None,
                    }
                )
    return pd.DataFrame(rows)
