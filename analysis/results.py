"""A finished study in a notebook: `analysis.load("results/quickstart").runs`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scalespec.analysis import tables


@dataclass(frozen=True)
class Results:
    """The tables of one study as DataFrames; columns and units stand in `analysis.tables` and docs/contract.md."""

    runs: pd.DataFrame
    curves: pd.DataFrame
    checkpoints: pd.DataFrame
    spectra: pd.DataFrame
    spectra_summary: pd.DataFrame
    laws: pd.DataFrame
    """One row a parameter of a law; a law without parameters has one row."""


def load(study_dir: str | os.PathLike[str]) -> Results:
    """The tables in a study folder on disk. Raises FileNotFoundError naming what is not there."""
    folder = Path(study_dir)
    if not (folder / "tables").is_dir():
        raise FileNotFoundError(
            f"{folder}: no tables/ there; give the folder that `scalespec run` made, or run `scalespec analyze {folder}`"
        )
    frames = {
        name: tables.to_pandas(tables.read_parquet(str(folder / "tables" / f"{name}.parquet")))
        for name in tables.TABLES
    }
    laws_file = folder / "laws.json"
    entries = json.loads(laws_file.read_text()) if laws_file.exists() else []
    return Results(**frames, laws=laws_frame(entries))


def laws_frame(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """`laws.json` as a table with the columns of `tables.LAWS`."""
    rows = []
    for entry in entries:
        shared = {
            name: entry.get(name) for name in tables.LAWS.names if name not in ("param", "value", "lo", "hi", "status")
        }
        shared["status"] = " ".join(sorted(entry["status"]))
        params = entry["params"] or {None: {}}
        rows += [
            {**shared, "param": name, **{key: param.get(key) for key in ("value", "lo", "hi")}}
            for name, param in params.items()
        ]
    return tables.to_pandas(tables.from_rows(rows, tables.LAWS))
