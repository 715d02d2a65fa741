"""Eigenvectors of bulk and tail: entropy, localisation and participation, as WeightWatcher 0.7.7 defines them.

The eigenvectors are those of the Gram matrix on the short side, by the symmetric solver.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from scalespec.analysis.spectral.esd import Array, Layer, gram
from scalespec.analysis.spectral.power_law import Floats

BINS, EPSILON = 100, 1e-10
"""Entropy is that of a histogram with 100 bins whatever the length, so it depends on the length (WeightWatcher #254)."""

METRICS = ("vec_entropy", "loc_ratio", "part_ratio")


def vector_metrics(layer: Layer, tail: int) -> dict[str, float]:
    """Mean and variance over the `tail` largest eigenvalues' vectors and over the others (NaN where there are none)."""
    values, rows = [], []
    for matrix in layer.stack:
        found, vectors = scipy.linalg.eigh(gram(matrix), driver="evd", overwrite_a=True, check_finite=False)
        values.append(found)
        rows.append(np.stack([discrete_entropy(vectors), localization(vectors), participation(vectors)]))
    order = np.argsort(np.concatenate(values), kind="stable")
    table = np.concatenate(rows, axis=1)[:, order]
    bulk = len(order) - tail
    out: dict[str, float] = {}
    for name, line in zip(METRICS, table):
        for place, part in (("bulk", line[:bulk]), ("tail", line[bulk:])):
            out[f"{place}_mean_{name}"] = float(part.mean()) if len(part) else np.nan
            out[f"{place}_var_{name}"] = float(part.var()) if len(part) else np.nan
    return out


def discrete_entropy(vectors: Array) -> Floats:
    """−Σ p ln p of the histogram of |v| of each column; at most ln 100."""
    size = np.abs(vectors)
    length, count = size.shape
    # shifted to mean zero first, as WeightWatcher does: bin edges round alike
    size = size - size.mean(axis=0)
    low, high = size.min(axis=0), size.max(axis=0)
    flat = high == low
    low, high = np.where(flat, low - 0.5, low), np.where(flat, high + 0.5, high)
    edges = np.linspace(low, high, BINS + 1)
    at = np.minimum(((size - low) / (high - low) * BINS).astype(np.intp), BINS - 1)
    column = np.arange(count)
    at -= size < edges[at, column]
    at += (size >= edges[at + 1, column]) & (at != BINS - 1)
    counts = np.bincount((at + column * BINS).ravel(), minlength=BINS * count).reshape(count, BINS)
    p = counts / (length * (high - low)[:, None] / BINS) + EPSILON
    p /= p.sum(axis=1, keepdims=True)
    return -np.sum(p * np.log(p), axis=1)  # type: ignore[no-any-return]


def localization(vectors: Array) -> Floats:
    """‖v‖₁/‖v‖∞ of each column."""
    size = np.abs(vectors)
    return size.sum(axis=0) / size.max(axis=0)  # type: ignore[no-any-return]


def participation(vectors: Array) -> Floats:
    """‖v‖₂/‖v‖₄ of each column."""
    squares = vectors * vectors
    return np.sqrt(squares.sum(axis=0)) / np.sum(squares * squares, axis=0) ** 0.25  # type: ignore[no-any-return]
