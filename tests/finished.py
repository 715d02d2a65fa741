"""A finished study on disk, made up from a known law: what reads studies needs no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from surfaces import grid_runs

from scalespec.analysis import tables
from scalespec.analysis.laws import Law, stored, study_laws


def finished(folder: Path, **changes: Any) -> list[Law]:
    """Writes tables and laws of `surfaces.grid_runs(**changes)` into `folder`; the laws as they were in memory."""
    runs = grid_runs(**changes)
    whole = filled(runs, tables.RUNS)
    spectra = filled(pd.DataFrame({"run_key": runs["run_key"], "layer": "head.weight", "alpha": 3.0, "trusted": True}), tables.SPECTRA)  # fmt: skip
    asks = filled(pd.DataFrame({"stage": "grid", "ask": 1, "round": 0, "role": "result", "run_key": runs["run_key"]}), tables.ASKS)  # fmt: skip
    made = {"runs": whole, "spectra": spectra, "asks": asks}
    (folder / "tables").mkdir(parents=True)
    for name, schema in tables.TABLES.items():
        pq.write_table(made.get(name, schema.empty_table()), folder / "tables" / f"{name}.parquet")
    laws = study_laws(tables.to_pandas(whole), resamples=60)
    pq.write_table(stored.evidence_table(laws), folder / tables.EVIDENCE_FILE)
    (folder / "laws.json").write_text(json.dumps([law.to_json() for law in laws], allow_nan=False))
    return laws


def filled(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The columns of `frame` that the schema has, and something for those that may not be null."""
    nothing = {
        tables.STR: "x",
        tables.INT: 1,
        tables.FLOAT: 1.0,
        tables.BOOL: False,
        tables.TIME: pd.Timestamp(0, tz="UTC"),
    }
    rows = [
        {**{field.name: nothing[field.type] for field in schema if not field.nullable}, **row}
        for row in frame[[name for name in frame if name in schema.names]].to_dict("records")
    ]
    return tables.from_rows(rows, schema)
