"""Anyone's table of runs: a CSV or Parquet file, or the runs of an experiment on an MLflow tracking server."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis import tables
from scalespec.orchestrator.errors import InputError

SEPARATORS = ",;\t|"
MLFLOW = "mlflow:"
PAGE = 1000
"""Runs asked for at a time; a server may refuse more than 50,000 (mlflow.store.tracking.SEARCH_MAX_RESULTS_THRESHOLD)."""
RUN_COLUMNS = ("run_id", "run_name", "status")


def read_table(source: str, tracking_uri: str | None = None) -> pd.DataFrame:
    """The table of a file, or of `mlflow:EXPERIMENT`. Raises InputError naming the source and the remedy."""
    if source.startswith(MLFLOW):
        return read_experiment(source.removeprefix(MLFLOW), tracking_uri)
    file = Path(source)
    if not file.is_file():
        raise InputError(f"{source}: no such file")
    try:
        if file.suffix == ".parquet":
            return tables.to_pandas(tables.read_parquet(str(file)))
        # of the usual separators the one that makes most columns; pandas' own guess takes any character
        return pd.read_csv(file, sep=max(SEPARATORS, key=lambda sep: pd.read_csv(file, sep=sep, nrows=0).shape[1]))
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise InputError(f"{source}: not a CSV or Parquet table ({str(error).splitlines()[0]})") from error


def read_experiment(name: str, tracking_uri: str | None = None) -> pd.DataFrame:
    """The finished runs of an experiment: `run_id`, `run_name`, parameters and the last value of each metric.

    A column is a parameter or metric by its own name; a name that is both is `params.NAME` and `metrics.NAME`. The server is
    `tracking_uri`, else MLFLOW_TRACKING_URI.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise InputError(
            f"{MLFLOW}{name}: no tracking server; give --tracking-uri, such as sqlite:///mlflow.db or http://localhost:5000"
        )
    runs = list(_finished(name, uri))
    params = {key for run in runs for key in run.data.params}
    metrics = {key for run in runs for key in run.data.metrics}
    taken = (params & metrics) | set(RUN_COLUMNS)

    def named(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{kind}.{key}" if key in taken else key: value for key, value in values.items()}

    rows = [
        {
            "run_id": run.info.run_id,
            "run_name": run.info.run_name,
            **named("params", run.data.params),
            **named("metrics", run.data.metrics),
        }
        for run in runs
    ]
    if not rows:
        raise InputError(f"{MLFLOW}{name}: the experiment has no finished runs")
    frame = pd.DataFrame(rows)
    numbers = frame[sorted(params - taken)].apply(pd.to_numeric, errors="coerce")
    whole = [column for column in numbers if numbers[column].notna().sum() == frame[column].notna().sum()]
    return frame.assign(**{column: numbers[column] for column in whole})


def _finished(name: str, uri: str) -> Iterator[Any]:
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(f"--tracking-uri {uri}: no such file")  # MLflow would make an empty one
    # a server that is not there is said within seconds, not after MLflow's seven retries; who set these knows better
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            known = [one.name for one in client.search_experiments(max_results=20)]
            raise InputError(f"{MLFLOW}{name}: no such experiment at {uri}; it has: {', '.join(known)}")
        token = None
        while True:
            page = client.search_runs(
                [experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return
    except MlflowException as error:
        raise InputError(f"--tracking-uri {uri}: {str(error).splitlines()[0][:300]}") from error


def with_values(frame: pd.DataFrame, columns: Iterable[str]) -> tuple[pd.DataFrame, int]:
    """The rows that have a value in each of the columns that the table has, and how many have not.

    In an experiment a run without the metric (the parent of a sweep) is no point, so it is left out; in a file it is a mistake.
    """
    kept = frame.dropna(subset=[column for column in columns if column in frame])
    return kept, len(frame) - len(kept)


def select(frame: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows where a comparison of columns with constants holds, such as `batch_size == 32 and width > 16`."""
    if where is None:
        return frame
    try:
        tree = ast.parse(re.sub("`[^`]*`", "column", where), mode="eval")
        if any(isinstance(node, ast.Call | ast.Attribute) for node in ast.walk(tree)):
            raise ValueError("columns, constants and comparisons only")
        kept = frame.eval(where, engine="python", local_dict={}, global_dict={})
        if not isinstance(kept, pd.Series) or not pd.api.types.is_bool_dtype(kept):
            raise ValueError("is neither true nor false for a row")
    except Exception as error:
        raise InputError(
            f"--where {where}: {str(error).splitlines()[0]}; write it like 'width > 16 and seed == 0'"
        ) from error
    return frame[kept.fillna(False).astype(bool)]


def column_of(frame: pd.DataFrame, option: str, column: str) -> pd.Series[Any]:
    """A column. Raises InputError naming the option and the columns that there are."""
    if column not in frame.columns:
        raise InputError(f"{option} {column}: no such column; the table has: {', '.join(map(str, frame.columns))}")
    return frame[column]


def positive_numbers(frame: pd.DataFrame, option: str, column: str) -> np.ndarray:
    """A column as floats [rows]. Raises InputError naming the option, the column, the row and the remedy."""
    found = column_of(frame, option, column)
    values = pd.to_numeric(found, errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~np.isfinite(values) | (values <= 0))
    if len(bad):
        what = found.iloc[[bad[0]]].tolist()[0]  # as Python's own type, which prints as itself
        raise InputError(
            f"{option} {column}: row {int(bad[0]) + 1} is {what!r}, {len(bad)} such in all; values must be finite and positive:"
            f" leave them out with --where '{column} > 0' or repair them"
        )
    return values
