from __future__ import annotations

import multiprocessing as mp
import os
import socket
import time

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from scalespec.analysis import tables
from scalespec.orchestrator.store.folder import (
    ArrowFiles,
    Lease,
    LeaseError,
    ParquetCodec,
    StorageError,
    StudyStore,
    check_writable,
    lease,
    open_files,
    study_root,
)
from scalespec.trainables.checkpoints import LocalFiles


@pytest.fixture(params=["local", "arrow"])
def files(request, tmp_path):
    if request.param == "local":
        return LocalFiles(tmp_path)
    return ArrowFiles(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "study")


def test_both_stores_keep_the_same_promises(files):
    files.write("a/b/c.json", b"1")
    assert files.read("a/b/c.json") == b"1"
    assert files.names("a/b") == ["c.json"]
    assert files.names("absent") == []
    assert files.create("claims/1", b"x")
    assert not files.create("claims/1", b"y")
    assert files.read("claims/1") == b"x"
    files.delete("a")
    files.delete("absent")
    with pytest.raises(FileNotFoundError):
        files.read("a/b/c.json")


def test_metrics_survive_parquet():
    codec = ParquetCodec()
    rows = [{"step": 1, "samples": 16, "flops": 2.0, "metric": "lr", "value": 0.1, "time_ms": 5}]
    assert codec.decode_metrics(codec.encode_metrics(rows)) == rows


def test_a_relative_storage_inside_a_job_is_refused(monkeypatch):
    assert study_root("./results", "s") == os.path.join(os.getcwd(), "results", "s")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(StorageError, match="deleted with the job; add --storage with an absolute path"):
        study_root("./results", "s")
    assert study_root("/data/results", "s") == "/data/results/s"
    assert study_root("s3://bucket/x/", "s") == "s3://bucket/x/s"


def test_unknown_uris_and_unwritable_folders_are_named(tmp_path):
    with pytest.raises(StorageError, match="nosuch://x"):
        open_files("nosuch://x/y")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot write there"):
        check_writable(str(blocked / "below"))
    check_writable(str(tmp_path / "fine"))
    assert os.listdir(tmp_path / "fine") == []


def test_a_second_driver_is_refused_with_the_holder_named(tmp_path):
    store = StudyStore(str(tmp_path))
    with lease(store), pytest.raises(LeaseError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        Lease(store).acquire()
    with lease(store):
        pass
    assert store.read_json("lease.json") is None


def _die_holding(root: str) -> None:
    Lease(StudyStore(root)).acquire()
    os._exit(9)


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path):
    process = mp.get_context("spawn").Process(target=_die_holding, args=(str(tmp_path),))
    process.start()
    process.join(60)
    store = StudyStore(str(tmp_path))
    assert store.read_json("lease.json")["pid"] == process.pid
    with lease(store) as held:
        assert store.read_json("lease.json")["session"] == held.session


@pytest.mark.parametrize(("age", "refused"), [(1.0, True), (1000.0, False)])
def test_a_lease_of_another_host_lives_by_its_heartbeat(tmp_path, age, refused):
    store = StudyStore(str(tmp_path))
    record = {"session": "x", "host": "elsewhere", "pid": 1, "process_started": 0, "heartbeat": time.time() - age}
    store.write_json("lease.json", record)
    if refused:
        with pytest.raises(LeaseError, match="on elsewhere"):
            Lease(store).acquire()
    else:
        with lease(store):
            pass


def test_a_damaged_lease_does_not_lock_the_study(tmp_path):
    store = StudyStore(str(tmp_path))
    store.files.write("lease.json", b"{")
    with lease(store):
        pass


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
