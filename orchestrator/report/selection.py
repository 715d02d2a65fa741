"""The choice that a study invites: its best configuration at the most data, and how much of the lead is luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from scalespec.analysis import tables
from scalespec.analysis.laws.study import D, extra_axes, usable
from scalespec.analysis.selection import Corrected, Selection, bootstrap_bias_corrected, select
from scalespec.orchestrator.store.folder import StudyStore

Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A selection among the settings of all axes but data and seed."""

    selection: Selection
    runs: Mapping[str, tuple[str, ...]]
    """Configuration → keys of its runs, one a seed."""


def choose(runs: pd.DataFrame) -> Choice | None:
    """Chooses among the finished runs with most data. None where there are fewer than two configurations."""
    good = usable(runs, "val_loss")[0]
    if good.empty:
        return None
    good = good[good[D] >= 0.999 * good[D].max()]
    axes = ["width", *extra_axes(runs)]
    names = [", ".join(f"{axis} {row[axis]}" for axis in axes) for _, row in good.iterrows()]
    named = good.assign(configuration=names)
    try:
        found = select(named, "configuration")
    except ValueError:
        return None
    keys = {str(name): tuple(rows["run_key"]) for name, rows in named.groupby("configuration")}
    return Choice(found, {str(name): keys[str(name)] for name in found.scores.index})


def read_examples(store: StudyStore, choice: Choice | None) -> dict[str, Losses]:
    """run_key → loss of every validation example [examples], of the candidates; a run whose file cannot be read is left out."""
    out: dict[str, Losses] = {}
    for key in (key for keys in choice.runs.values() for key in keys) if choice else ():
        try:
            path = store.run(key).history().val_path
            data = store.files.read(path or f"runs/{key}/val.parquet")
            out[key] = tables.read_parquet(pa.BufferReader(data))["loss"].to_numpy()
        except (OSError, ValueError, KeyError):
            continue
    return out


def correct(choice: Choice | None, examples: Mapping[str, Losses]) -> Corrected | None:
    """The winner's loss corrected for having been chosen, by resampling examples; None without every candidate's examples."""
    if choice is None:
        return None
    columns = []
    for keys in choice.runs.values():
        seeds = [examples[key] for key in keys if key in examples]
        if len(seeds) < len(keys) or len({len(losses) for losses in seeds}) != 1:
            return None
        columns.append(np.mean(seeds, axis=0))
    try:
        return bootstrap_bias_corrected(np.column_stack(columns))
    except ValueError:  # too few examples, or seeds that saw different ones
        return None
