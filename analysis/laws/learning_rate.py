"""The best learning rate and batch size against N, D and B, with intervals, and the kink at the best batch.

At a fixed number of tokens the best learning rate grows with the batch only up to the loss-optimal batch, and is flat above it;
one power law through both is an average of two regimes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis.laws import bootstrap
from scalespec.analysis.laws.fitting import NARROW
from scalespec.analysis.laws.form import Form, Parameter
from scalespec.analysis.laws.law import Array, FitStatus, Law, positive

LEAST_RATES = 5
"""Learning rates without which a batch has no optimum, and points of the parabola through it."""
_LEAST_BATCHES = 3
_LEAST_CELLS = 6


@dataclass(frozen=True)
class Cell:
    """The optima of one (N, D)."""

    n: float
    d: float
    batch: Array
    """[k] batches whose best rate is bracketed."""
    rate: Array
    """[k] best rate of each."""
    loss: Array
    """[k] loss there."""
    edge: int
    """Batches whose best rate lies at the end of the grid: flagged, never used."""

    @property
    def best(self) -> int:
        """Index of the loss-optimal batch."""
        return int(np.argmin(self.loss))

    @property
    def bracketed(self) -> bool:
        """Whether the loss-optimal batch has batches on both sides: at the end of the grid it is a limit, not an optimum."""
        return 0 < self.best < len(self.batch) - 1

    def slope(self, which: str) -> float:
        """Slope of ln lr* on ln B for the batches `all`, `below` (B ≤ B*) or `above` (B ≥ B*); NaN with fewer than three."""
        best = self.batch[self.best]
        mine = {"all": self.batch > 0, "below": self.batch <= best, "above": self.batch >= best}[which]
        if mine.sum() < _LEAST_BATCHES:
            return float("nan")
        return float(np.polyfit(np.log(self.batch[mine]), np.log(self.rate[mine]), 1)[0])


def best_rate(lr: Array, loss: Array) -> tuple[float, float, str]:
    """(lr*, loss, status) of one batch: the vertex of the parabola in ln lr through the five points around the lowest loss.

    status: interior | smallest | largest (the lowest loss is at that end of the grid) | too_few | not_convex.
    """
    order = np.argsort(lr)
    x, y = np.log(lr[order]), loss[order]
    if len(x) < LEAST_RATES:
        return float("nan"), float("nan"), "too_few"
    low = int(np.argmin(y))
    if low in (0, len(x) - 1):
        return float("nan"), float("nan"), "smallest" if low == 0 else "largest"
    first = min(max(low - 2, 0), len(x) - 5)
    window = slice(first, first + 5)
    quadratic, slope, constant = np.polyfit(x[window] - x[low], y[window], 2)
    shift = -slope / (2 * quadratic) if quadratic > 0 else np.inf
    if not x[window][0] <= x[low] + shift <= x[window][-1]:
        return float("nan"), float("nan"), "not_convex"
    return float(np.exp(x[low] + shift)), float(constant + slope * shift / 2), "interior"


def cells(
    runs: pd.DataFrame, *, n: str, d: str, batch: str, lr: str, loss: str, ceiling: float | None = None
) -> list[Cell]:
    """The optima of every (N, D) with at least one bracketed rate; the arguments name columns of `runs`.

    Runs at or above the loss `ceiling` are diverged and left out; repeats of a cell are averaged first. Raises ValueError on
    values that are not positive numbers.
    """
    table = pd.DataFrame({name: positive(name, runs[column]) for name, column in zip("ndbrl", (n, d, batch, lr, loss))})
    if ceiling is not None:
        table = table[table["l"] < ceiling]
    out = []
    for _, group in table.groupby(["n", "d"]):
        found = []
        edge = 0
        for _, rows in group.groupby("b"):
            mean = rows.groupby("r")["l"].mean()
            rate, low, status = best_rate(mean.index.to_numpy(), mean.to_numpy())
            edge += status in ("smallest", "largest")
            if status == "interior":
                found.append((rows["b"].iloc[0], rate, low))
        if found:
            b, r, low_loss = np.array(found).T
            out.append(Cell(float(group["n"].iloc[0]), float(group["d"].iloc[0]), b, r, low_loss, edge))
    return out


def slopes(found: list[Cell]) -> pd.DataFrame:
    """One row a cell: N, D, B*, lr* there, and the slope of ln lr* on ln B over all, lower and higher batches."""
    rows = [
        {
            "n": cell.n,
            "d": cell.d,
            "batch_opt": cell.batch[cell.best],
            "lr_opt": cell.rate[cell.best],
            "loss": cell.loss[cell.best],
            **{f"slope_{which}": cell.slope(which) for which in ("all", "below", "above")},
            "batches": len(cell.batch),
            "edge": cell.edge,
            "batch_bracketed": cell.bracketed,
        }
        for cell in found
    ]
    return pd.DataFrame(rows)


def fit_learning_rate(
    found: list[Cell], *, resamples: int = 400, seed: int = 0, level: float = 0.95
) -> tuple[Law, Law]:
    """lr* = k·N^p·D^q·(min(B, B*)/B*)^s·(max(B, B*)/B*)^t and B* = k·N^p·D^q, by least squares in logarithms.

    Parameters k, n, d, and for the rate below (s) and above (t); one that nothing in the table varies is absent. B* of a cell is
    its own loss-optimal batch, and enters the law of B* only where it is bracketed. Draws resample cells (N, D): the
    batches of a cell share its runs' recipe and data.
    """
    rate_rows = [_rate_rows(cell) for cell in found]
    batch_rows = [(np.array([[1, np.log(c.n), np.log(c.d)]]), np.log([c.batch[c.best]])) for c in found if c.bracketed]
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    return (
        _log_linear("lr_opt", ("k", "n", "d", "below", "above"), rate_rows, **options),
        _log_linear("batch_opt", ("k", "n", "d"), batch_rows, **options),
    )


def _rate_rows(cell: Cell) -> tuple[Array, Array]:
    away = np.log(cell.batch / cell.batch[cell.best])
    ones = np.ones_like(away)
    design = [ones, ones * np.log(cell.n), ones * np.log(cell.d), np.minimum(away, 0), np.maximum(away, 0)]
    return np.column_stack(design), np.log(cell.rate)


def _log_linear(
    name: str, names: tuple[str, ...], rows: list[tuple[Array, Array]], *, resamples: int, seed: int, level: float
) -> Law:
    points = sum(len(y) for _, y in rows)
    common: dict[str, Any] = {
        "id": name,
        "form": "log_linear",
        "target": name,
        "level": level,
        "n_points": points,
        "n_column": "n",
        "d_column": "d",
    }
    if len(rows) < _LEAST_CELLS:
        return Law(
            params={},
            resampling=f"none: {len(rows)} cells (N, D) with an optimum, {_LEAST_CELLS} are needed",
            n_used=0,
            status=frozenset({FitStatus.TOO_FEW_POINTS}),
            **common,
        )
    whole = np.concatenate([x for x, _ in rows])
    centre = np.array([whole[:, i].mean() if p in ("n", "d") else 0.0 for i, p in enumerate(names)])
    varied = np.array([p == "k" or np.ptp(whole[:, i]) > 1e-9 for i, p in enumerate(names)])

    def solve(chosen: Any) -> tuple[Array, bool]:
        x = np.concatenate([rows[i][0] for i in chosen]) - centre
        y = np.concatenate([rows[i][1] for i in chosen])
        beta = np.zeros(len(names))
        beta[varied], _, rank, _ = np.linalg.lstsq(x[:, varied], y, rcond=1e-10)
        beta[0] -= beta @ centre
        return beta, bool(rank == varied.sum())

    estimate, determined = solve(range(len(rows)))
    drawn = [solve(chosen) for chosen in np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))]
    spread = np.array([beta for beta, full in drawn if full]).reshape(-1, len(names))
    widening = bootstrap.Clusters.alone(len(rows)).widening(level)
    residuals = np.concatenate([y - x @ estimate for x, y in rows])
    params = {
        p: bootstrap.interval(estimate[i], spread[:, i], level, widening)
        for i, p in enumerate(names)
        if p != "k" and varied[i]
    }
    params["k"] = bootstrap.interval(float(np.exp(estimate[0])), np.exp(spread[:, 0]), level, widening, log=True)
    ranges = {p: float(np.exp(np.ptp(whole[:, names.index(p)]))) for p in ("n", "d")}
    status = {FitStatus.CONVERGED if determined else FitStatus.NOT_CONVERGED}
    if any(reach < NARROW for p, reach in ranges.items() if p in params) or "n" not in params:
        status.add(FitStatus.TOO_NARROW)
    return Law(
        params=params,
        resampling=f"{len(spread)} bootstrap draws over {len(rows)} cells (N, D)",
        n_used=points,
        status=frozenset(status),
        diagnostics={
            "residual_sd": float(residuals.std(ddof=min(int(varied.sum()), points - 1))),
            "n_range": ranges["n"],
            "d_range": ranges["d"],
        },
        **common,
    )


FORM = Form(
    name="log_linear",
    title="Best learning rate and batch size",
    equation="k·N^p·D^q",
    source="https://arxiv.org/abs/2503.04715",
    variables=("n", "d"),
    parameters={
        "k": Parameter("k", "the best value at N = D = 1", decades=True),
        "n": Parameter("p", "it goes with size as N^p"),
        "d": Parameter("q", "it goes with data as D^q"),
        "below": Parameter("s", "below the best batch it goes with the batch as B^s"),
        "above": Parameter("t", "above the best batch it goes with the batch as B^t"),
    },
    exponents=("n", "d"),
    picture=None,
)
