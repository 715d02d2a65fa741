from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalespec.analysis import tables
from scalespec.orchestrator.store.folder import ParquetCodec, StudyStore


def test_metrics_survive_parquet():
    codec = ParquetCodec()
    rows = [{"step": 1, "samples": 16, "flops": 2.0, "metric": "lr", "value": 0.1, "time_ms": 5}]
    assert codec.decode_metrics(codec.encode_metrics(rows)) == rows


def test_parquet_with_extension_types_is_refused(tmp_path):
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"x": [1.0]}), plain)
    assert tables.read_parquet(str(plain)).num_rows == 1
    hostile = tmp_path / "hostile.parquet"
    inner = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    pq.write_table(pa.table({"x": pa.ListArray.from_arrays([0, 1], inner)}), hostile)
    with pytest.raises(tables.TableError, match="extension type"):
        tables.read_parquet(str(hostile))


def test_tables_are_written_sorted_by_their_key(tmp_path):
    store = StudyStore(str(tmp_path))
    rows = [
        {"run_key": k, "step": s, "samples": 1, "flops": 1.0, "metric": "lr", "value": 0.5}
        for k, s in (("b", 2), ("a", 9), ("b", 1))
    ]
    store.write_table("curves", tables.from_rows(rows, tables.CURVES))
    found = store.read_table("curves").to_pylist()
    assert [(row["run_key"], row["step"]) for row in found] == [("a", 9), ("b", 1), ("b", 2)]
    assert store.read_table("runs") is None


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        StudyStore(str(tmp_path)).write_json("x.json", {"v": float("nan")})
    assert StudyStore(str(tmp_path)).read_json("x.json") is None
