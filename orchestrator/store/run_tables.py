"""From run folders to tables: reads what is committed, and nothing else."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from scalespec.analysis import tables
from scalespec.orchestrator.store import watch
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.watch import Committed, committed
from scalespec.trainables.checkpoints import read_manifest
from scalespec.trainables.files import Files
from scalespec.trainables.history import WEIGHTS, History
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.tables")

RESULT_COLUMNS = [
    name
    for name in tables.RUNS.names
    if name
    not in (
        "study",
        "run_key",
        "family_key",
        "task",
        "width",
        "data_fraction",
        "seed",
        "role",
        "mlflow_run_id",
        "cost_usd",
    )
]

POINTS = pa.schema([field for field in tables.CURVES if field.name != "run_key"])
"""The columns of a metric part that enter the table of curves."""


def axis_columns(specs: Iterable[RunSpec]) -> dict[str, pa.DataType]:
    """A column for every further axis, by leaf name; `optim.lr` is `lr_base` already, and other known columns stay theirs."""
    kinds: dict[str, set[type]] = {}
    for spec in specs:
        for name, value in spec.axes.items():
            column = _column(name, spec.axes)
            if column not in tables.RUNS.names:
                kinds.setdefault(column, set()).add(type(value))
    return {column: _arrow_type(types - {type(None)}) for column, types in kinds.items()}


def _column(name: str, axes: Iterable[str]) -> str:
    """The leaf of an axis' name; the whole name where two axes end alike, as optim.name and schedule.name do."""
    leaf = name.rpartition(".")[2]
    return name if sum(other.rpartition(".")[2] == leaf for other in axes) > 1 else leaf


def _arrow_type(types: set[type]) -> pa.DataType:
    if types == {bool}:
        return pa.bool_()
    if types == {int}:
        return pa.int64()
    return pa.float64() if types <= {int, float} else pa.string()


def runs_table(
    store: StudyStore,
    specs: Sequence[RunSpec],
    mlflow_ids: Mapping[str, str] = MappingProxyType({}),
    price_per_hour: float | None = None,
    roles: Mapping[str, str] = MappingProxyType({}),
    found: Mapping[str, Committed] | None = None,
) -> pa.Table:
    """One row for every run of the present study that has a result. `found`: what was read before."""
    found = committed(store, specs) if found is None else found
    axes = axis_columns(specs)
    rows = []
    for spec in specs:
        result = found[spec.run_key].result
        if result is None:
            continue
        row = {name: result.get(name) for name in RESULT_COLUMNS}
        row |= {
            "study": spec.study,
            "run_key": spec.run_key,
            "family_key": spec.family_key,
            "task": spec.task,
            "width": spec.width,
            "data_fraction": float(spec.data_fraction),
            "seed": spec.seed,
            "batch_size": spec.optim.batch_size,
            "reference_width": spec.optim.reference.width,
            "lr_base": spec.optim.lr,
            "optimizer": spec.optim.name,
            "schedule": spec.schedule.name,
            "started_at": dt.datetime.fromtimestamp(result["started_at"], dt.UTC),
            "role": roles.get(spec.run_key),
            "mlflow_run_id": mlflow_ids.get(spec.run_key),
            "cost_usd": None if price_per_hour is None else price_per_hour * result["duration_s"] / 3600,
        }
        for name, value in spec.axes.items():
            column = _column(name, spec.axes)
            if column in axes:
                row[column] = str(value) if axes[column] == pa.string() and value is not None else value
        rows.append(row)
    return tables.from_rows(rows, tables.with_axes(tables.RUNS, axes))


def curves_table(store: StudyStore, specs: Sequence[RunSpec], found: Mapping[str, Committed] | None = None) -> pa.Table:
    """Every logged point of every run that has a result, one a (step, metric): where two parts hold it, the later one counts."""
    found = committed(store, specs) if found is None else found
    keys = [spec.run_key for spec in specs if found[spec.run_key].result is not None]
    parts, owners = [], []
    for at, key in enumerate(keys):
        for path in found[key].history.metric_parts:
            part = _part(store.files, path)
            if part is not None:
                parts.append(part)
                owners.append(np.full(part.num_rows, at))
    if not parts:
        return tables.from_rows([], tables.CURVES)
    rows, run = pa.concat_tables(parts), np.concatenate(owners)
    step, metric = rows["step"].to_numpy(), pc.rank(rows["metric"], tiebreaker="dense").to_numpy()
    order = np.lexsort((metric, step, run))
    same = (run, step, metric)
    last = np.append(np.any([np.diff(values[order]) != 0 for values in same], axis=0), True)
    kept = order[last]
    return (
        rows.take(kept)
        .add_column(0, tables.CURVES.field("run_key"), pa.array(keys).take(run[kept]))
        .cast(tables.CURVES)
    )


def _part(files: Files, path: str) -> pa.Table | None:
    """The points of a metric part; a damaged one is named in the log and passed over."""
    try:
        return tables.conform(tables.read_parquet(pa.BufferReader(files.read(path))), POINTS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read and is left out (%s)", path, error)
        return None


def checkpoints_table(
    store: StudyStore, specs: Sequence[RunSpec], found: Mapping[str, Committed] | None = None
) -> pa.Table:
    """The committed analysis weights of every run, finished or not."""
    found = committed(store, specs) if found is None else found
    rows = (row for spec in specs for row in _checkpoint_rows(store, spec.run_key, found[spec.run_key].history))
    return tables.from_rows(rows, tables.CHECKPOINTS)


def checkpoint_rows(store: StudyStore, run_key: str) -> list[dict[str, Any]]:
    """The committed analysis weights of a run, as rows of the table."""
    return _checkpoint_rows(store, run_key, store.run(run_key).history())


def _checkpoint_rows(store: StudyStore, run_key: str, seen: History) -> list[dict[str, Any]]:
    rows = (checkpoint_row(store, run_key, step, path) for step, path in seen.checkpoints.items())
    return [row for row in rows if row is not None]


def checkpoint_row(store: StudyStore, run_key: str, step: int, path: str) -> dict[str, Any] | None:
    """One of them, `path` its folder; None where its manifest cannot be read."""
    try:
        facts: Any = read_manifest(store.files, path)
        entry, losses = facts["files"][WEIGHTS], facts["metrics"]
        return {
            "run_key": run_key,
            "step": step,
            "samples": facts["samples"],
            "flops": facts["flops"],
            "path": f"{path}/{WEIGHTS}",
            "bytes": entry["bytes"],
            "sha256": entry["sha256"],
            "val_loss": losses.get("val_loss"),
            "val_accuracy": losses.get("val_accuracy"),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def frames(store: StudyStore, specs: Sequence[RunSpec], needs: Collection[str]) -> dict[str, pd.DataFrame]:
    """The tables named, of these runs: runs, curves."""
    found = committed(store, specs)
    made = {"runs": lambda: runs_table(store, specs, found=found), "curves": lambda: curves_table(store, specs, found)}
    return {name: tables.to_pandas(table()) for name, table in made.items() if name in needs}


def status_of(store: StudyStore, specs: Sequence[RunSpec]) -> dict[str, Any]:
    """done / running / diverged / failed / missing for each run, read from disk; folders of other studies are counted."""
    lease = store.read_json("lease.json")
    session = lease.get("session") if isinstance(lease, dict) else None
    there = set(store.files.names("runs"))
    found = watch.results(store, [spec.run_key for spec in specs])
    states = {}
    for spec in specs:
        key, result = spec.run_key, found.get(spec.run_key)
        state = str(result["status"]) if result else "missing"
        if result is None and session and key in there:
            claims = store.run(key).claims()
            state = "running" if claims and claims[-1].get("session") == session else "missing"
        states[key] = {
            "state": state,
            "error": result.get("error") if result else None,
            "width": spec.width,
            "data_fraction": str(spec.data_fraction),
            "seed": spec.seed,
            **dict(spec.axes),
        }
    return {"study": specs[0].study if specs else "", "runs": states, "other_runs": len(there - set(states))}
