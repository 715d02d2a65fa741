"""The study folder: where everything lies, how it is committed, and who may drive it.

The disk is the truth. A study folder is on a local or shared disk, or behind any URI that pyarrow knows (s3://, gs:// …).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from scalespec.analysis import tables
from scalespec.orchestrator.errors import InputError
from scalespec.trainables.checkpoints import Files, LocalFiles, Row, RunFolder
from scalespec.trainables.io import ValRows
from scalespec.trainables.spec import RunSpec

HEARTBEAT_S, STALE_S = 10.0, 60.0
"""A lease is renewed every HEARTBEAT_S; one from another host that is STALE_S old is taken over."""


class StorageError(InputError):
    """Storage that cannot be used; the message says why and what to do."""


class LeaseError(RuntimeError):
    """Another driver holds the study."""


class ArrowFiles:
    """`Files` over a pyarrow file system. An object appears whole or not at all, so there is nothing to rename."""

    def __init__(self, fs: pafs.FileSystem, root: str) -> None:
        self.fs, self.root = fs, root.rstrip("/")

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def write(self, path: str, data: bytes) -> None:
        target = self._path(path)
        self.fs.create_dir(target.rpartition("/")[0], recursive=True)
        with self.fs.open_output_stream(target) as stream:
            stream.write(data)

    def read(self, path: str) -> bytes:
        with self.fs.open_input_stream(self._path(path)) as stream:
            return bytes(stream.read())

    def create(self, path: str, data: bytes) -> bool:
        """Not atomic where the store has no conditional put through pyarrow: the last of two racing writers wins, and the
        other one learns of it by reading back."""
        if self.fs.get_file_info(self._path(path)).type != pafs.FileType.NotFound:
            return False
        self.write(path, data)
        return self.read(path) == data

    def names(self, folder: str) -> list[str]:
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def delete(self, path: str) -> None:
        info = self.fs.get_file_info(self._path(path))
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(info.path)
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(info.path)


def open_files(root: str) -> Files:
    """The file store at a path or URI. Raises StorageError for a URI that pyarrow cannot open."""
    if "://" not in root:
        return LocalFiles(root)
    try:
        fs, path = pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, OSError, NotImplementedError) as error:
        raise StorageError(f"storage {root}: {error}") from error
    return LocalFiles(path) if isinstance(fs, pafs.LocalFileSystem) else ArrowFiles(fs, path)


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
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@dataclass(frozen=True)
class StudyStore:
    """The folder of one study."""

    root: str
    """Absolute path or URI of STORAGE/STUDY."""

    @property
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
        try:
            return json.loads(self.files.read(path))
        except (OSError, ValueError):
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        self.files.write(f"tables/{name}.parquet", parquet_bytes(tables.sorted_by_key(table, name)))

    def read_table(self, name: str) -> pa.Table | None:
        try:
            return tables.read_parquet(pa.BufferReader(self.files.read(f"tables/{name}.parquet")))
        except FileNotFoundError:
            return None


def read_text(store: StudyStore, path: str) -> str | None:
    """A text file of the study; None where it is absent."""
    try:
        return store.files.read(path).decode()
    except FileNotFoundError:
        return None


def free_bytes(store: StudyStore) -> int | None:
    """Free disk where the study lies; None behind a URI."""
    if not isinstance(store.files, LocalFiles):
        return None
    path = store.root
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def study_root(storage: str, name: str) -> str:
    """STORAGE/STUDY as an absolute path or URI. Raises StorageError for a relative path inside a Ray job.

    A job runs in a copy of the working directory that is thrown away with the job, results and all.
    """
    if "://" in storage:
        return f"{storage.rstrip('/')}/{name}"
    path = os.path.expanduser(storage)
    if not os.path.isabs(path) and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise StorageError(
            f"storage {storage!r} is relative, and a Ray job's working directory is deleted with the job;"
            " add --storage with an absolute path or URI that every node sees"
        )
    return os.path.join(os.path.abspath(path), name)


def check_writable(root: str) -> None:
    """Raises StorageError where nothing can be written; leaves nothing behind."""
    files, probe = open_files(root), f".probe-{uuid.uuid4().hex}"
    try:
        files.write(probe, b"probe")
        files.delete(probe)
    except OSError as error:
        raise StorageError(f"storage {root}: cannot write there ({error}); choose another with --storage") from error


class Lease:
    """One driver a study: `lease.json` holds host, pid and heartbeat while this object is held."""

    PATH = "lease.json"

    def __init__(self, store: StudyStore) -> None:
        self.files = store.files
        self.session = uuid.uuid4().hex[:12]
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def _record(self) -> bytes:
        me = {"session": self.session, "host": socket.gethostname(), "pid": os.getpid()}
        facts = {**me, "process_started": psutil.Process().create_time(), "heartbeat": time.time()}
        return json.dumps(facts, indent=1).encode()

    def _holder(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.files.read(self.PATH))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def acquire(self) -> Lease:
        """Takes the lease or raises LeaseError naming its holder."""
        if not self.files.create(self.PATH, self._record()):
            holder = self._holder()
            if holder is not None and is_alive(holder):
                raise LeaseError(
                    f"this study is being run by process {holder['pid']} on {holder['host']}"
                    f" (last heartbeat {time.time() - holder['heartbeat']:.0f} s ago); stop it or wait for it"
                )
            self.files.write(self.PATH, self._record())
            time.sleep(0.2)  # two drivers may have found it stale at once; the last writer holds it
            if (self._holder() or {}).get("session") != self.session:
                raise LeaseError("another driver took over this study's stale lease at the same moment")
        self._thread.start()
        return self

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            holder = self._holder()
            if holder is not None and holder.get("session") != self.session:
                self.lost.set()
                return
            with contextlib.suppress(OSError):
                self.files.write(self.PATH, self._record())

    def release(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if (self._holder() or {}).get("session") == self.session:
            with contextlib.suppress(OSError):
                self.files.delete(self.PATH)


def is_alive(holder: Mapping[str, Any]) -> bool:
    """Whether the process that a lease names still drives its study."""
    try:
        if holder["host"] == socket.gethostname():
            process = psutil.Process(int(holder["pid"]))
            same = abs(process.create_time() - float(holder["process_started"])) < 2.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        return time.time() - float(holder["heartbeat"]) < STALE_S
    except (KeyError, ValueError, TypeError, psutil.NoSuchProcess):
        return False
    except psutil.AccessDenied:
        return True


@contextlib.contextmanager
def lease(store: StudyStore) -> Iterator[Lease]:
    """Holds the study for the length of a `with`."""
    held = Lease(store).acquire()
    try:
        yield held
    finally:
        held.release()
