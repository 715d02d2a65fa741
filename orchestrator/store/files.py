"""Where a study's storage is: a path or URI taken apart, the `Files` behind it, and whether it can be written safely."""

from __future__ import annotations

import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.store import objects
from scalespec.trainables.files import Files, LocalFiles

SECRETS = ("access_key", "secret_key", "session_token", "password", "token", "account_key", "sas_token")

WRITERS, ROUNDS = 4, 2
"""So many race for one name, so often, before a store is trusted with conditional writes."""


class StorageError(InputError):
    """Storage that cannot be used; the message says why and what to do."""


class ArrowFiles:
    """`Files` over a pyarrow file system, for reading: pyarrow has no conditional write, so nothing could be claimed."""

    def __init__(self, fs: pafs.FileSystem, root: str, refusal: str) -> None:
        self.fs, self.root, self.refusal = fs, root.rstrip("/"), refusal

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        with self.fs.open_input_file(self._path(path)) as stream:
            if start:
                stream.seek(min(start, stream.size()))
            return bytes(stream.read(size))

    def names(self, folder: str) -> list[str]:
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def walk(self, folder: str) -> list[str]:
        root = self._path(folder)
        selector = pafs.FileSelector(root, allow_not_found=True, recursive=True)
        found = (info for info in self.fs.get_file_info(selector) if info.type == pafs.FileType.File)
        return sorted(info.path[len(root) :].lstrip("/") for info in found)

    def write(self, path: str, data: bytes) -> None:
        raise StorageError(self.refusal)

    def create(self, path: str, data: bytes) -> bool:
        raise StorageError(self.refusal)

    def delete(self, path: str) -> None:
        raise StorageError(self.refusal)


def open_files(root: str) -> Files:
    """The file store at a path or URI. Raises StorageError for a URI that cannot be opened."""
    if "://" not in root:
        return LocalFiles(root)
    _refuse_secrets(root)
    scheme = urlsplit(root).scheme
    if scheme == "file":
        return LocalFiles(unquote(urlsplit(root).path))
    instead = "use a disk that all nodes share, or a store with S3's interface"
    if scheme == "s3":
        try:
            return objects.open_objects(root)
        except ValueError as error:
            raise StorageError(f"storage {root}: {error}") from error
        except ImportError:
            instead = "install the client that has them: pip install 'scalespec[s3]'"
    try:
        fs, path = pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, OSError, NotImplementedError) as error:
        raise StorageError(f"storage {root}: {error}") from error
    if isinstance(fs, pafs.LocalFileSystem):
        return LocalFiles(path)
    return ArrowFiles(fs, path, f"storage {root}: can be read only, for want of conditional writes; {instead}")


def _refuse_secrets(uri: str) -> None:
    """A URI is stored with the study and shown in MLflow, so it must not bear credentials."""
    parts = urlsplit(uri)
    query = parse_qsl(parts.query, keep_blank_values=True)
    hosts = [parts.netloc, *(value for name, value in query if name == "endpoint_override")]
    if any("@" in host for host in hosts) or any(name.lower() in SECRETS for name, _ in query):
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise StorageError(
            f"storage {shown}: the URI holds credentials, which would be stored with the study; leave them out and set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment"
        )


def below(root: str, name: str) -> str:
    """A name inside a path or URI; the query of a URI stays a query."""
    if "://" not in root:
        return os.path.join(root, name)
    parts = urlsplit(root)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))


def study_root(storage: str, name: str) -> str:
    """STORAGE/STUDY as an absolute path or URI. Raises StorageError for a relative path inside a Ray job.

    A job runs in a copy of the working directory that is thrown away with the job, results and all.
    """
    if "://" in storage:
        _refuse_secrets(storage)
        return below(storage, name)
    path = os.path.expanduser(storage)
    if not os.path.isabs(path) and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise StorageError(
            f"storage {storage!r} is relative, and a Ray job's working directory is deleted with the job;"
            " add --storage with an absolute path or URI that every node sees"
        )
    return os.path.join(os.path.abspath(path), name)


def check_writable(root: str) -> None:
    """Raises StorageError where nothing can be written, or where two writers could take one name; leaves nothing behind."""
    files, folder = open_files(root), f".probe-{uuid.uuid4().hex}"
    try:
        exact = _creates_once(files, folder)
        files.delete(folder)
    except OSError as error:
        raise StorageError(f"storage {root}: cannot write there ({error}); choose another with --storage") from error
    if not exact:
        raise StorageError(
            f"storage {root}: the store ignores conditional writes (If-None-Match), so two workers could overwrite each"
            " other's results; choose one that honours them (S3, Ceph, MinIO) or a shared disk with --storage"
        )


def _creates_once(files: Files, folder: str) -> bool:
    """Whether a name is given away once: asked twice in a row, then by several at the same time."""
    if not files.create(f"{folder}/once", b"first") or files.create(f"{folder}/once", b"second"):
        return False
    if files.read(f"{folder}/once") != b"first":
        return False
    return all(_race(files, f"{folder}/race-{turn}") for turn in range(ROUNDS))


def _race(files: Files, path: str) -> bool:
    """Whether one of several writers at the same time gets a name. Raises what goes wrong in any of them."""
    start = threading.Barrier(WRITERS)

    def write(writer: int) -> bool:
        start.wait()
        return files.create(path, b"%d" % writer)

    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(write, range(WRITERS))) == 1
