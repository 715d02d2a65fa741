"""Numbers of one spectrum: norms, ranks, entropy. Names and definitions are WeightWatcher 0.7.7's.

`spectral_norm` is the largest eigenvalue, the square of the operator norm; `norm` is the squared Frobenius norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalespec.analysis.spectral.esd import WW, Spectrum
from scalespec.analysis.spectral.power_law import Fit, Floats

EPS = float(np.finfo(np.float64).eps)
ENTROPY_EPSILON = 1e-10
WEAK_RANK = 1e-6
"""WeightWatcher's `tolerance`: an absolute value."""

OVER_TRAINED, UNDER_TRAINED = 2.0, 6.0
"""WeightWatcher's limits of alpha; its word, not a finding: see `trust` before believing them."""


def scale_metrics(spectrum: Spectrum) -> dict[str, Any]:
    """What needs no fit. `spectrum` must have a positive eigenvalue."""
    values = spectrum.values
    norm, top = float(values.sum()), float(values[-1])
    rank = matrix_rank(values, spectrum.N)
    return {
        "num_evals": len(values),
        "norm": norm,
        "log_norm": float(np.log10(norm)),
        "lambda_max": top,
        "spectral_norm": top,
        "log_spectral_norm": float(np.log10(top)),
        "stable_rank": norm / top,
        "sv_max": top**0.5,
        "sv_min": spectrum.sv_min,
        "rank_loss": spectrum.rank_loss,
        "weak_rank_loss": int(np.searchsorted(values, WEAK_RANK)),
        "matrix_rank": rank,
        "entropy": entropy(values, rank),
    }


def matrix_rank(values: Floats, N: int) -> int:
    """Singular values above max σ · N · eps, on the pooled eigenvalues (ascending)."""
    sigma = np.sqrt(values)
    return int(np.count_nonzero(sigma > sigma[-1] * (N * EPS)))


def entropy(values: Floats, rank: int) -> float:
    """−Σ p ln p / ln rank with p = λ/Σλ + 1e-10. WeightWatcher's formula: for rank 1 it is meaningless and huge."""
    p = values / values.sum() + ENTROPY_EPSILON
    return float(-np.sum(p * np.log(p)) / np.log(rank + ENTROPY_EPSILON))


def fit_metrics(values: Floats, fit: Fit) -> dict[str, Any]:
    """The fit's columns, and those that combine it with the scale."""
    log_top = float(np.log10(values[-1]))
    return {
        "alpha": fit.alpha,
        "xmin": fit.xmin,
        "xmax": fit.xmax,
        "D": fit.D,
        "sigma": fit.sigma,
        "num_pl_spikes": tail_size(values, fit.xmin),
        "alpha_weighted": fit.alpha * log_top,
        "log_alpha_norm": log_alpha_norm(values, fit.alpha),
        "warning": warning(fit.alpha),
    }


def tail_size(values: Floats, xmin: float) -> int:
    """Eigenvalues (ascending) at or above xmin."""
    return len(values) - int(np.searchsorted(values, xmin))


def log_alpha_norm(values: Floats, alpha: float) -> float:
    """log10 Σ λ^alpha over all eigenvalues, scaled by the largest so that nothing overflows."""
    top = values[-1]
    return float(alpha * np.log10(top) + np.log10(np.sum((values / top) ** alpha)))


def warning(alpha: float) -> str:
    """WeightWatcher's label of an alpha, empty in between."""
    return "over-trained" if alpha < OVER_TRAINED else "under-trained" if alpha > UNDER_TRAINED else ""


def fit_columns(profile: str) -> dict[str, str]:
    """The columns that hold the profile's own fit, by the plain names: what a verdict and a picture are about."""
    plain = ("alpha", "xmin", "D", "sigma", "num_pl_spikes")
    return {name: name if profile == WW else f"{name}_ks2" for name in plain}
