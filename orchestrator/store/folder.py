"""The study folder: where everything lies and how it is committed. The disk is the truth."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalespec.analysis import tables
from scalespec.orchestrator.store.files import open_files
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.commits import read_json
from scalespec.trainables.files import Files, LocalFiles
from scalespec.trainables.io import ValRows
from scalespec.trainables.record import Row
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.store")


class ParquetCodec:
    """Metric parts and validation rows as Parquet with the schemas of `analysis.tables`."""

    suffix = "parquet"

    def encode_metrics(self, rows: Sequence[Row]) -> bytes:
        return parquet_bytes(tables.from_rows(rows, tables.METRICS_PART))

    def decode_metrics(self, data: bytes) -> list[Row]:
        rows: list[Row] = tables.read_parquet(pa.BufferReader(data)).to_pylist()
        return rows

    def encode_val(self, val: ValRows) -> bytes:
        count = len(val.loss)
        columns = {
            "example_id": pa.array(np.arange(count)),
            "half": pa.array(np.where(val.select, "select", "report")),
            "loss": pa.array(val.loss),
            "correct": pa.nulls(count, pa.float64()) if val.correct is None else pa.array(val.correct),
        }
        return parquet_bytes(pa.table(columns, schema=tables.VAL))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file in memory."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


@dataclass(frozen=True)
class StudyStore:
    """The folder of one study."""

    root: str
    """Absolute path or URI of STORAGE/STUDY."""

    @functools.cached_property
    def files(self) -> Files:
        return open_files(self.root)

    @property
    def local_path(self) -> str | None:
        """The folder on this machine's disk, or None where the study lives behind a URI."""
        files = self.files
        return str(files.root) if isinstance(files, LocalFiles) else None

    def run(self, run_key: str) -> RunFolder:
        return RunFolder(self.files, f"runs/{run_key}", ParquetCodec())

    def family(self, family_key: str) -> RunFolder:
        return RunFolder(self.files, f"families/{family_key}", ParquetCodec())

    def write_spec(self, spec: RunSpec) -> None:
        self.write_json(f"runs/{spec.run_key}/spec.json", spec.to_json())

    def spec(self, run_key: str) -> RunSpec | None:
        found = self.read_json(f"runs/{run_key}/spec.json")
        return None if found is None else RunSpec.from_json(found)

    def write_json(self, path: str, value: Any) -> None:
        self.files.write(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def read_json(self, path: str) -> Any | None:
        """The value, or None where the file is absent or damaged."""
        return read_json(self.files, path)

    def write_table(self, name: str, table: pa.Table) -> None:
        self.files.write(f"tables/{name}.parquet", parquet_bytes(tables.sorted_by_key(table, name)))

    def read_table(self, name: str) -> pa.Table | None:
        try:
            return tables.read_parquet(pa.BufferReader(self.files.read(f"tables/{name}.parquet")))
        except FileNotFoundError:
            return None


def read_part(files: Files, path: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table | None:
    """One part of a table that is written in parts, or its `columns`; a damaged one is named in the log and passed over."""
    try:
        return tables.conform(tables.read_parquet(pa.BufferReader(files.read(path)), columns), schema)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read and is left out (%s)", path, error)
        return None


def read_text(store: StudyStore, path: str) -> str | None:
    """A text file of the study; None where it is absent."""
    try:
        return store.files.read(path).decode()
    except FileNotFoundError:
        return None


def free_bytes(store: StudyStore) -> int | None:
    """Free disk where the study lies; None behind a URI."""
    path = store.local_path
    if path is None:
        return None
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free
