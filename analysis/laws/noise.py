"""The seed noise of a table, and the Huber threshold that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalespec.analysis.laws.law import Array

DEFAULT_DELTA = 1e-3
"""Huber threshold of https://arxiv.org/abs/2203.15556 on log loss: a relative error of 0.1 %."""
MINIMUM_CELLS = 5


@dataclass(frozen=True)
class SeedNoise:
    """Spread of ln(loss) between runs that differ in the seed alone."""

    sd: float
    """Pooled standard deviation within cells; NaN where no cell has two runs."""
    cells: int
    """Cells with at least two runs."""
    degrees: int
    """Degrees of freedom of `sd`."""


def seed_noise(loss: Array, *variables: Array) -> SeedNoise:
    """Pools the spread of ln(loss) over cells: points equal in every one of `variables`."""
    _, cell = np.unique(np.column_stack(variables), axis=0, return_inverse=True)
    cell = cell.ravel()
    size = np.bincount(cell)
    mean = np.bincount(cell, np.log(loss)) / size
    cells, degrees = int((size >= 2).sum()), int((size - 1).sum())
    if degrees == 0:
        return SeedNoise(float("nan"), 0, 0)
    return SeedNoise(float(np.sqrt(((np.log(loss) - mean[cell]) ** 2).sum() / degrees)), cells, degrees)


def default_delta(noise: SeedNoise) -> float:
    """The measured noise where at least five cells have two seeds, else 1e-3.

    A threshold far below the noise turns the fit into one of absolute deviations, which wastes data.
    """
    return noise.sd if noise.cells >= MINIMUM_CELLS and noise.sd > 1e-6 else DEFAULT_DELTA
