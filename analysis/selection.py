"""The optimizer's curse: whatever wins a comparison of noisy scores looks better than it is.

Remedies, from strongest to weakest: report on data and seeds that took no part in the choice; correct the winner's
score by resampling examples; and show what the best of n trials is worth on average instead of one lucky best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]


def expected_best(losses: Any, largest: int | None = None) -> Array:
    """Expected lowest loss of n = 1 … `largest` trials drawn without replacement from `losses` [N]; [n].

    The unbiased (U-statistic) form Σ_i L_(i) C(N−i, n−1)/C(N, n) of https://aclanthology.org/2020.acl-main.246; the more common
    V-statistic is optimistic about few trials. Assumes trials drawn at random: a grid or a scheduler that stops trials early
    breaks it. Raises ValueError on values that are not finite, or where `largest` exceeds N.
    """
    ordered = np.sort(_finite("losses", losses))
    size = len(ordered)
    largest = size if largest is None else largest
    if not 1 <= largest <= size:
        raise ValueError(f"largest: {largest} is outside 1 … {size}, the number of trials")
    trials = np.arange(1, largest + 1)[:, None]
    rank = np.arange(1, size + 1)[None, :]
    with np.errstate(invalid="ignore"):
        log_share = _log_choose(size - rank, trials - 1) - _log_choose(size, trials)
    return np.asarray(np.where(size - rank >= trials - 1, np.exp(log_share), 0.0) @ ordered)


def _log_choose(n: Any, k: Any) -> Any:
    out = np.maximum(n - k, 0)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(out + 1)


@dataclass(frozen=True)
class Corrected:
    """The winner's loss before and after correction for having been chosen."""

    winner: int
    """Index of the configuration with the lowest mean loss."""
    apparent: float
    """Its mean loss on the examples it was chosen on."""
    corrected: float
    """Mean loss of each draw's winner on the examples outside the draw."""
    lo: float
    """Lower end of the interval of `corrected`."""
    hi: float

    @property
    def optimism(self) -> float:
        """What choosing on the same examples hides: corrected − apparent."""
        return self.corrected - self.apparent


def bootstrap_bias_corrected(losses: Any, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Corrected:
    """Corrects the winner of `losses` [examples, configurations] for selection, without training anything again.

    Each draw resamples examples, chooses on those drawn and scores on the others (https://arxiv.org/abs/1708.07180, BBC-CV).
    Raises ValueError on values that are not finite or fewer than two examples.
    """
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 2 or not np.isfinite(table).all():
        raise ValueError("losses: give a table [examples, configurations] of finite numbers with at least two examples")
    examples, _ = table.shape
    rng = np.random.default_rng(seed)
    total = table.sum(axis=0)
    scores = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(examples, size=examples), minlength=examples).astype(np.float64)
        outside = times == 0
        if not outside.any():
            continue
        winner = int(np.argmin(times @ table))
        scores.append(table[outside, winner].mean())
    if not scores:
        raise ValueError("losses: too few examples: every draw contained all of them")
    best = int(np.argmin(total))
    lo, hi = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Corrected(best, float(total[best] / examples), float(np.mean(scores)), float(lo), float(hi))


@dataclass(frozen=True)
class Selection:
    """A choice, and an honest score of it."""

    winner: Any
    runner_up: Any
    selected_on: str
    """Data and seeds of the choice, in words."""
    reported_on: str
    """Data and seeds of the report, in words."""
    apparent: float
    """Loss of the winner where it was chosen."""
    honest: float
    """Its loss on the other half of the validation set, and on fresh seeds where there are any."""
    margin_apparent: float
    """Lead over the runner-up where they were chosen (positive: better)."""
    margin_honest: float
    """The same lead in the report; negative: the runner-up is better there."""
    configurations: int
    fresh_seeds: bool
    scores: pd.DataFrame = field(compare=False, repr=False)
    """One row a configuration, the best first: its loss where it was `selected` and where it was `reported`."""

    @property
    def luck(self) -> float:
        """Share of the apparent margin that was luck: 1 − honest/apparent margin, not below 0."""
        return max(0.0, 1 - self.margin_honest / self.margin_apparent) if self.margin_apparent > 0 else 0.0

    def sentence(self) -> str:
        """How much of the winner's margin is luck, in one sentence."""
        lead = f"Chosen from {self.configurations} on {self.selected_on}, {self.winner} led {self.runner_up} by"
        apparent = f"{lead} {_share(self.margin_apparent, self.apparent)}"
        if self.margin_honest <= 0:
            return (
                f"{apparent}; on {self.reported_on} it trails by {_share(-self.margin_honest, self.honest)}: "
                "the whole margin was luck."
            )
        honest = _share(self.margin_honest, self.honest)
        if self.luck < 0.05:
            return f"{apparent}; on {self.reported_on} it leads by {honest}: the margin holds."
        return f"{apparent}; on {self.reported_on} only by {honest}: {100 * self.luck:.0f} % of the margin was luck."


def _share(margin: float, loss: float) -> str:
    return f"{100 * margin / loss:.2g} %"


def select(
    runs: pd.DataFrame,
    by: str | list[str],
    *,
    select_column: str = "val_loss_select",
    report_column: str = "val_loss_report",
    seed_column: str = "seed",
) -> Selection:
    """Chooses the best value of `by` (column or columns) on one half of validation, and reports on the other.

    With two seeds or more in common, the first half of the seeds chooses and the others report; with one seed both use it,
    and the sentence says so. Configurations without a finite loss in every seed are no candidates: fewer trials would give
    them fewer chances. Raises ValueError naming a missing column, or where fewer than two candidates remain.
    """
    axes = [by] if isinstance(by, str) else list(by)
    if missing := sorted({*axes, select_column, report_column, seed_column} - set(runs.columns)):
        raise ValueError(f"runs: columns {', '.join(missing)} are missing; pass the table runs.parquet of a study")
    chosen_on = _by_seed(runs, axes, seed_column, select_column)
    told_on = _by_seed(runs, axes, seed_column, report_column)
    complete = np.isfinite(chosen_on).all(axis=1) & np.isfinite(told_on).all(axis=1)
    kept = np.flatnonzero(complete)
    chosen_on, told_on = chosen_on.iloc[kept], told_on.iloc[kept]
    if len(chosen_on) < 2:
        raise ValueError(
            f"runs: {len(chosen_on)} values of {', '.join(axes)} have a loss in every seed; two are needed to choose"
        )
    seeds = list(chosen_on.columns)
    fresh = len(seeds) >= 2
    first, rest = (seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]) if fresh else (seeds, seeds)
    scores = chosen_on[first].mean(axis=1).sort_values(kind="stable")
    reports = told_on[rest].mean(axis=1)
    winner, second = scores.index[0], scores.index[1]
    return Selection(
        winner=winner,
        runner_up=second,
        selected_on=f"one half of validation, {_named(first)}",
        reported_on=f"the other half, {_named(rest) if fresh else 'the same seed'}",
        apparent=float(scores.iloc[0]),
        honest=float(reports[winner]),
        margin_apparent=float(scores.iloc[1] - scores.iloc[0]),
        margin_honest=float(reports[second] - reports[winner]),
        configurations=len(scores),
        fresh_seeds=fresh,
        scores=pd.DataFrame({"selected": scores, "reported": reports[scores.index]}),
    )


def _named(seeds: list[Any]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _by_seed(runs: pd.DataFrame, axes: list[str], seed: str, value: str) -> pd.DataFrame:
    numbers = runs.assign(**{value: pd.to_numeric(runs[value], errors="coerce").astype(float)})
    return numbers.pivot_table(index=axes, columns=seed, values=value, aggfunc="mean", dropna=False, observed=True)


def _finite(name: str, values: Any) -> Array:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"{name}: give at least one value, all finite; leave diverged trials out or score them at a ceiling"
        )
    return array
