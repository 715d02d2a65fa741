"""From run folders to tables: reads what is committed, and nothing else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from scalespec.analysis import tables
from scalespec.orchestrator.store import watch
from scalespec.orchestrator.store.folder import StudyStore, read_part
from scalespec.trainables.commits import read_json, read_manifest
from scalespec.trainables.files import Files
from scalespec.trainables.history import WEIGHTS, History
from scalespec.trainables.spec import RunSpec

RUNS_AT_ONCE = 500
"""Runs whose curves are put in order together: their rows are held twice for that long."""

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


def axis_columns(specs: Sequence[RunSpec]) -> dict[str, pa.DataType]:
    """A column for every further axis, by leaf name; `optim.lr` is `lr_base` already, and other known columns stay theirs."""
    types: dict[str, pa.DataType] = {}
    for name, column in _columns(specs).items():
        kinds = {type(spec.value_of(name)) for spec in specs}
        types[column] = _arrow_type(kinds - {type(None)})
    return types


def _columns(specs: Iterable[RunSpec]) -> dict[str, str]:
    """Axis → its column: the leaf of its name; the whole name where two axes end alike, as optim.name and schedule.name do."""
    names = list(dict.fromkeys(name for spec in specs for name in spec.axes))
    leaves = [name.rpartition(".")[2] for name in names]
    columns = {name: name if leaves.count(leaf) > 1 else leaf for name, leaf in zip(names, leaves, strict=True)}
    return {name: column for name, column in columns.items() if column not in tables.RUNS.names}


def _arrow_type(types: set[type]) -> pa.DataType:
    if types == {bool}:
        return pa.bool_()
    if types == {int}:
        return pa.int64()
    return pa.float64() if types <= {int, float} else pa.string()


class Found(NamedTuple):
    """What is committed of a run."""

    history: History
    result: Mapping[str, Any] | None


def find(store: StudyStore, specs: Iterable[RunSpec]) -> dict[str, Found]:
    """By run_key: each folder is listed once for all tables."""
    files, out = store.files, {}
    for spec in specs:
        history = store.run(spec.run_key).history()
        result = None if history.result_path is None else read_json(files, history.result_path)
        whole = isinstance(result, dict) and isinstance(result.get("status"), str)
        out[spec.run_key] = Found(history, result if whole else None)
    return out


def runs_table(
    store: StudyStore,
    specs: Sequence[RunSpec],
    mlflow_ids: Mapping[str, str] = MappingProxyType({}),
    price_per_hour: float | None = None,
    roles: Mapping[str, str] = MappingProxyType({}),
    *,
    found: Mapping[str, Found] | None = None,
) -> pa.Table:
    """One row for every run of the present study that has a result. `found`: what `find` gave."""
    axes, names = axis_columns(specs), _columns(specs)
    found = find(store, specs) if found is None else found
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
        for name, column in names.items():
            value = spec.value_of(name)  # of every run, in a study of stages whose grids have other axes too
            row[column] = str(value) if axes[column] == pa.string() and value is not None else value
        rows.append(row)
    return tables.from_rows(rows, tables.with_axes(tables.RUNS, axes))


def with_mlflow_ids(runs: pa.Table, ids: Mapping[str, str]) -> pa.Table:
    """The table with the runs' ids in MLflow, which are known after it was first written."""
    at = runs.schema.get_field_index("mlflow_run_id")
    column = pa.array([ids.get(key) for key in runs["run_key"].to_pylist()], pa.string())
    return runs.set_column(at, runs.schema.field(at), column)


def curves_table(store: StudyStore, specs: Sequence[RunSpec], *, found: Mapping[str, Found] | None = None) -> pa.Table:
    """Every logged point of every run that has a result, in the order of its key."""
    found = find(store, specs) if found is None else found
    keys = sorted(spec.run_key for spec in specs if found[spec.run_key].result is not None)
    parts = [
        _curves(store.files, {key: found[key].history.metric_parts for key in keys[at : at + RUNS_AT_ONCE]})
        for at in range(0, len(keys), RUNS_AT_ONCE)
    ]
    pa.default_memory_pool().release_unused()
    return pa.concat_tables(parts) if parts else tables.from_rows([], tables.CURVES)


def _curves(files: Files, paths: Mapping[str, Sequence[str]]) -> pa.Table:
    """run_key → its parts, for some runs in order. Where two parts hold the same point, the later one counts."""
    parts, run = [], []
    for at, mine in enumerate(paths.values()):
        for path in mine:
            part = read_part(files, path, tables.METRICS_PART)
            if part is not None:
                parts.append(part)
                run.append(np.full(part.num_rows, at))
    if not parts:
        return tables.from_rows([], tables.CURVES)
    whole = pa.concat_tables(parts).combine_chunks()
    names = pa.DictionaryArray.from_arrays(pa.array(np.concatenate(run)), pa.array(list(paths), pa.string()))
    whole = whole.drop_columns(["time_ms"]).add_column(0, tables.CURVES.field("run_key"), names.cast(pa.string()))
    whole = whole.cast(tables.CURVES)
    return tables.last_of_each_key(whole, "curves")


def checkpoints_table(
    store: StudyStore, specs: Sequence[RunSpec], *, found: Mapping[str, Found] | None = None
) -> pa.Table:
    """The committed analysis weights of every run, finished or not."""
    found, files = find(store, specs) if found is None else found, store.files
    rows = (_checkpoint_rows(files, spec.run_key, found[spec.run_key].history) for spec in specs)
    return tables.from_rows((row for mine in rows for row in mine), tables.CHECKPOINTS)


def checkpoint_rows(store: StudyStore, run_key: str) -> list[dict[str, Any]]:
    """The committed analysis weights of a run, as rows of the table."""
    return _checkpoint_rows(store.files, run_key, store.run(run_key).history())


def _checkpoint_rows(files: Files, run_key: str, history: History) -> list[dict[str, Any]]:
    rows = (checkpoint_row(files, run_key, step, path) for step, path in history.checkpoints.items())
    return [row for row in rows if row is not None]


def checkpoint_row(files: Files, run_key: str, step: int, path: str) -> dict[str, Any] | None:
    """One of them, `path` its folder; None where its manifest cannot be read."""
    try:
        facts: Any = read_manifest(files, path)
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
    made = {"runs": runs_table, "curves": curves_table}
    return {name: tables.to_pandas(table(store, specs)) for name, table in made.items() if name in needs}


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
