"""The same layer at several steps: slopes, change points, and agreement with the loss.

Tables come in as DataFrames with the columns of `analysis.tables.SPECTRA` and `CHECKPOINTS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from scalespec.analysis.spectral.esd import Array
from scalespec.analysis.spectral.power_law import Floats

METRICS = ("alpha", "alpha_hill", "stable_rank", "log_norm", "log_spectral_norm", "alpha_weighted", "rand_distance")
WITNESSES = ("rand_distance", "spectral_norm", "distance_from_init")
"""What WeightWatcher #307 would have alpha agree with."""

KEY = ["run_key", "layer", "profile"]
MIN_SEGMENT = 2
"""Checkpoints in a level: one alone is a jump of the fit, not a change."""


def slopes(spectra: pd.DataFrame, metrics: Sequence[str] = METRICS, level: float = 0.9) -> pd.DataFrame:
    """Theil–Sen slope of each metric against log10(step), one row a run, layer, profile and metric.

    Columns: KEY, metric, slope, lo, hi (at `level`), n. Steps ≤ 0 and layers with fewer than three points are left out; one
    outlying fit does not move the slope.
    """
    rows = []
    for key, steps, name, values in _series(spectra, metrics, start=1):
        if len(values) >= 3:
            found = stats.theilslopes(values, np.log10(steps), alpha=level)
            rows.append((*key, name, found.slope, found.low_slope, found.high_slope, len(values)))
    return pd.DataFrame(rows, columns=[*KEY, "metric", "slope", "lo", "hi", "n"])


def changes(spectra: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Steps at which a metric of a layer moves to another level: KEY, metric, step, before, after (medians of the levels)."""
    rows = []
    for key, steps, name, values in _series(spectra, metrics):
        bounds = [0, *change_points(values), len(values)]
        for left, at, right in zip(bounds, bounds[1:], bounds[2:]):
            before, after = float(np.median(values[left:at])), float(np.median(values[at:right]))
            rows.append((*key, name, int(steps[at]), before, after))
    return pd.DataFrame(rows, columns=[*KEY, "metric", "step", "before", "after"])


def change_points(values: Floats, min_segment: int = MIN_SEGMENT) -> list[int]:
    """Indices at which a new constant level starts, by exact minimisation of squared error plus 3·s²·ln n a change.

    Three parameters a change: its place, level and the noise (Yao 1988, https://doi.org/10.1016/0167-7152(88)90118-6, takes
    two; fits of alpha have heavier tails). s is the noise from the median absolute difference of neighbours, so that the
    levels themselves do not enter it.
    """
    n = len(values)
    if n < 2 * min_segment:
        return []
    noise = float(np.median(np.abs(np.diff(values)))) / (0.6745 * np.sqrt(2))
    floor = 1e-9 * max(1e-12, float(np.abs(values).max()))
    penalty = 3 * max(noise, floor) ** 2 * np.log(n)
    sums, squares = (np.concatenate(([0.0], np.cumsum(v))) for v in (values, values**2))
    best, last = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
    best[0] = -penalty
    for end in range(min_segment, n + 1):
        start = np.array([s for s in range(end - min_segment + 1) if s == 0 or s >= min_segment])
        total = sums[end] - sums[start]
        error = squares[end] - squares[start] - total**2 / (end - start)
        score = best[start] + error + penalty
        at = int(np.argmin(score))
        best[end], last[end] = score[at], start[at]
    found, end = [], n
    while last[end] > 0:
        end = int(last[end])
        found.append(end)
    return found[::-1]


def agreement(spectra: pd.DataFrame, witnesses: Sequence[str] = WITNESSES) -> pd.DataFrame:
    """Spearman correlation of alpha with each witness over the steps of a layer: KEY, metric, rho, p, n.

    Levels over one training run all drift, so a high rho says that the two tell the same story, not that one causes the other.
    """
    rows = []
    for key, group in _groups(spectra):
        for name in witnesses:
            if name not in group:
                continue
            both = group[["alpha", name]].dropna()
            if len(both) >= 4 and np.ptp(both["alpha"]) > 0 and np.ptp(both[name]) > 0:
                found = stats.spearmanr(both["alpha"], both[name])
                rows.append((*key, name, float(found.statistic), float(found.pvalue), len(both)))
    return pd.DataFrame(rows, columns=[*KEY, "metric", "rho", "p", "n"])


def loss_correlation(
    table: pd.DataFrame,
    metrics: Sequence[str],
    loss: str = "val_loss",
    *,
    resamples: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman correlation of the change of each metric with the change of the loss between neighbouring checkpoints.

    `table`: run_key, family_key, step, `loss` and the metrics, one row a checkpoint. Changes, because levels of anything that
    drifts correlate. Runs of a family share their trunk, so equal changes count once a family and families are what is
    resampled. Columns: metric, rho, lo, hi (percentile interval, NaN with one family), pairs, families.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name in metrics:
        pairs = _changes(table, name, loss)
        groups = [group[["metric", "loss"]].to_numpy() for _, group in pairs.groupby("family_key")]
        rho = _spearman(groups)
        draws = []
        if len(groups) > 1:
            picks = rng.integers(len(groups), size=(resamples, len(groups)))
            draws = [value for pick in picks if np.isfinite(value := _spearman([groups[g] for g in pick]))]
        lo, hi = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2)) if draws else (np.nan, np.nan)
        rows.append((name, rho, float(lo), float(hi), len(pairs), len(groups)))
    return pd.DataFrame(rows, columns=["metric", "rho", "lo", "hi", "pairs", "families"])


def _changes(table: pd.DataFrame, name: str, loss: str) -> pd.DataFrame:
    ordered = table[["family_key", "run_key", "step", name, loss]].dropna().sort_values(["run_key", "step"])
    within = ordered.groupby("run_key")
    moved = pd.DataFrame(
        {
            "family_key": ordered["family_key"],
            "from": within["step"].shift(),
            "step": ordered["step"],
            "metric": within[name].diff(),
            "loss": within[loss].diff(),
        }
    )
    return moved.dropna().drop_duplicates()


def _spearman(groups: Sequence[Floats]) -> float:
    pairs = np.concatenate(groups) if groups else np.empty((0, 2))
    if len(pairs) < 3 or (pairs == pairs[0]).all(axis=0).any():
        return float("nan")
    ranks = stats.rankdata(pairs, axis=0)
    return float(np.corrcoef(ranks, rowvar=False)[0, 1])


def _groups(spectra: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    fitted = spectra[spectra["status"] == "ok"].sort_values("step")
    for key, group in fitted.groupby(KEY, sort=True):
        yield tuple(key) if isinstance(key, tuple) else (key,), group


def _series(
    spectra: pd.DataFrame, metrics: Sequence[str], start: int | None = None
) -> Iterator[tuple[tuple[Any, ...], Array, str, Floats]]:
    for key, group in _groups(spectra):
        for name in metrics:
            if name in group:
                known = group[group[name].notna() & ((group["step"] >= start) if start is not None else True)]
                yield key, known["step"].to_numpy(), name, known[name].to_numpy(dtype=np.float64)
