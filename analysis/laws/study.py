"""Every law that a study's tables allow, each with its intervals and an honest status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis.laws import frontier, learning_rate
from scalespec.analysis.laws.chinchilla import fit_chinchilla
from scalespec.analysis.laws.frontier_law import fit_frontier
from scalespec.analysis.laws.law import Exclusion, Law
from scalespec.analysis.laws.power import fit_power

AXES_OF_A_GRID = ("width", "data_fraction", "seed")
RECIPE = ("batch_size", "lr_base", "optimizer", "schedule", "precision")
"""Columns of every runs table that make two runs incomparable where they differ."""
N, D, C = "params_matmul", "samples", "flops_train"


def study_laws(
    runs: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    *,
    target: str = "val_loss",
    resamples: int = 400,
    seed: int = 0,
    level: float = 0.95,
) -> list[Law]:
    """The parametric law, the frontier, N_opt(C), L(N) and L(D) of a study, and lr* where it tried learning rates.

    `runs` has the columns of `analysis.tables.RUNS`; runs that are not done, or have no `target`, are left out with a reason.
    Probes of a study in stages are no results: they are counted in `diagnostics` and not read. A study with further axes
    (dropout, a batch size) gives one set of laws a combination, its id suffixed `/axis=value`. Only finished runs count: `curves`
    holds losses in mid-schedule, which no law may read. Raises ValueError naming a missing column.
    """
    needed = {"run_key", "family_key", "status", N, D, C, target, *AXES_OF_A_GRID}
    if missing := sorted(needed - set(runs.columns)):
        raise ValueError(f"runs: columns {', '.join(missing)} are missing; pass the table runs.parquet of a study")
    runs, probes = results_only(runs)
    laws: list[Law] = []
    for suffix, part in combinations(runs):
        laws += [
            replace(law, id=law.id + suffix)
            for law in _grid_laws(part, target=target, resamples=resamples, seed=seed, level=level)
        ]
    if "lr" in runs and runs.groupby([N, D])["lr"].nunique().max() >= learning_rate.LEAST_RATES:
        good, excluded = usable(runs, target)
        found = learning_rate.cells(good, n=N, d=D, batch="batch_size", lr="lr", loss=target)
        for law in learning_rate.fit_learning_rate(found, resamples=resamples, seed=seed, level=level):
            laws.append(replace(law, n_column=N, d_column=D, excluded=excluded))
    if probes:
        laws = [replace(law, diagnostics={**law.diagnostics, "probes_left_out": probes}) for law in laws]
    return laws


def as_runs(
    n: Any, d: Any, c: Any, loss: Any, *, families: Sequence[Any] | None = None, keys: Sequence[Any] | None = None
) -> pd.DataFrame:
    """Anyone's columns [points] as the part of a runs table that laws and figures read."""
    names = [str(k) for k in keys] if keys is not None else [str(i) for i in range(len(loss))]
    return pd.DataFrame(
        {
            "run_key": names,
            "family_key": [str(f) for f in families] if families is not None else names,
            "status": "done",
            N: np.asarray(n, dtype=np.float64),
            D: np.asarray(d, dtype=np.float64),
            C: np.asarray(c, dtype=np.float64),
            "val_loss": np.asarray(loss, dtype=np.float64),
        }
    )


def extra_axes(runs: pd.DataFrame) -> list[str]:
    """The axes of a study beyond width, fraction and seed that vary: its own columns, and the shared ones of the recipe."""
    columns = list(runs.columns)
    own: list[str] = []
    if "seed" in columns and "batch_size" in columns:
        own = columns[columns.index("seed") + 1 : columns.index("batch_size")]
    axes = [name for name in (*own, *RECIPE) if name in columns and len(runs[name].unique()) > 1]
    if "lr_base" in axes:
        rest = ["width", *(name for name in axes if name != "lr_base")]
        if runs.groupby(rest, dropna=False)["lr_base"].nunique().max() == 1:
            axes.remove("lr_base")  # a rate tuned for each setting is part of it, not a setting of its own
    return axes


def results_only(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The runs that were asked for as results, and how many probes there are beside them."""
    if "role" not in runs:
        return runs, 0
    probes = (runs["role"] == "probe").to_numpy(dtype=np.bool_, na_value=False)
    return runs[~probes], int(probes.sum())


def combinations(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(suffix of the laws' ids, runs) of every combination of the further axes."""
    axes = extra_axes(runs)
    if not axes:
        return [("", runs)]
    out = []
    for values, part in runs.groupby(axes, dropna=False, sort=True):
        named = zip(axes, values if isinstance(values, tuple) else (values,), strict=True)
        out.append(("/" + ",".join(f"{axis}={value}" for axis, value in named), part))
    return out


def usable(runs: pd.DataFrame, target: str) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """The runs that may enter a law, and the others with the reason."""
    loss = pd.to_numeric(runs[target], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    done = (runs["status"] == "done").to_numpy()
    counts = {name: np.asarray(runs[name], dtype=np.float64) for name in (N, D, C)}
    positive = {name: np.isfinite(values) & (values > 0) for name, values in {target: loss, **counts}.items()}
    kept = done & np.logical_and.reduce(list(positive.values()))
    excluded = []
    for i in np.flatnonzero(~kept):
        row = runs.iloc[int(i)]
        error = row.get("error")
        why = f"{row['status']}: {error}" if isinstance(error, str) and error else str(row["status"])
        bad = next((name for name, good in positive.items() if not good[i]), "")
        excluded.append(Exclusion(str(row["run_key"]), f"{bad} is not a positive number" if done[i] else why))
    return runs[kept], tuple(excluded)


def _grid_laws(runs: pd.DataFrame, *, target: str, **options: Any) -> list[Law]:
    good, excluded = usable(runs, target)
    table = _Table(good, target, options)

    def label(law: Law, name: str, aim: str, used: Sequence[str], rest: tuple[Exclusion, ...] = ()) -> Law:
        left = excluded + rest
        return replace(
            law,
            id=name,
            target=aim,
            excluded=left,
            n_points=law.n_points + len(left),
            n_column=N if "n" in used else None,
            d_column=D if "d" in used else None,
            c_column=C if "c" in used else None,
        )

    laws = [label(table.chinchilla(), "chinchilla", target, "ndc")]
    best_loss, best_size = table.frontier()
    best_loss = table.with_accuracy(best_loss)
    laws += [label(best_loss, "frontier", target, "nc"), label(best_size, "n_opt", N, "nc")]
    for name, variable, fixed, what in (("loss_of_n", "n", D, "the largest D"), ("loss_of_d", "d", N, "the largest N")):
        law, rest = table.slice(variable, fixed, what)
        laws.append(label(law, name, target, variable, rest))
    return laws


class _Table:
    """The usable runs as arrays."""

    def __init__(self, runs: pd.DataFrame, target: str, options: dict[str, Any]) -> None:
        self.keys = [str(k) for k in runs["run_key"]]
        self.families = [str(k) for k in runs["family_key"]]
        self.n, self.d, self.c, self.loss = (runs[name].to_numpy(dtype=np.float64) for name in (N, D, C, target))
        self.options = options
        accuracy = pd.to_numeric(runs.get("val_accuracy", pd.Series(np.nan, index=runs.index)), errors="coerce")
        known = accuracy.to_numpy(dtype=np.float64, na_value=np.nan)
        self.accuracy = known if len(known) and bool(((known >= 0) & (known < 1)).all()) else None

    def chinchilla(self) -> Law:
        return fit_chinchilla(
            self.n, self.d, self.loss, c=self.c, families=self.families, keys=self.keys, **self.options
        )

    def frontier(self) -> tuple[Law, Law]:
        return fit_frontier(self.n, self.c, self.loss, families=self.families, keys=self.keys, **self.options)

    def with_accuracy(self, law: Law) -> Law:
        """The frontier with the accuracy read along it, through ln(1 − accuracy): accuracy itself saturates."""
        at = law.diagnostics["points"]["c"]
        if self.accuracy is None or not at:
            return law
        read = frontier.trace(self.n, self.c, self.loss, np.array(at))
        accuracy = 1 - frontier.along(self.n, self.c, 1 - self.accuracy, read)
        points = {**law.diagnostics["points"], "accuracy": accuracy.tolist()}
        return replace(law, diagnostics={**law.diagnostics, "points": points})

    def slice(self, variable: str, fixed: str, what: str) -> tuple[Law, tuple[Exclusion, ...]]:
        """The law in one variable where the other is largest."""
        other = self.d if fixed == D else self.n
        mine = other >= 0.999 * other.max() if len(other) else np.zeros(0, dtype=np.bool_)
        rest = tuple(Exclusion(self.keys[i], f"not at {what}") for i in np.flatnonzero(~mine))
        law = fit_power(
            (self.n if variable == "n" else self.d)[mine],
            self.loss[mine],
            variable=variable,
            families=[self.families[i] for i in np.flatnonzero(mine)],
            keys=[self.keys[i] for i in np.flatnonzero(mine)],
            **self.options,
        )
        return law, rest
