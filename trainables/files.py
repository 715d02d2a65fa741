"""Five operations on whole files that every commit is made of, and the local disk that has them.

Paths are relative to one root and use `/`. An object store has no folders: here too a folder is nothing but a common prefix, and
what is no file (absent, a folder, below a file) is a FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import Protocol

TEMPORARY = ".tmp-"
"""Names that begin so are writes under way, or what a killed one left; nobody sees them."""


class Files(Protocol):
    """What storage must be able to do. Anything that goes wrong is an OSError."""

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        """The file, or `size` bytes of it from `start`; fewer where it ends before. Raises FileNotFoundError."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Makes the whole file visible at once, in place of what was there; it outlives a power cut once this returns."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """The same where nothing is yet, exactly: of several writers one gets True. `data` should tell its writer apart."""
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders in a folder; none where it is absent."""
        ...

    def walk(self, folder: str) -> list[str]:
        """Sorted paths, relative to `folder`, of all files below it; one call where the storage lists prefixes."""
        ...

    def delete(self, path: str) -> None:
        """Removes a file, or everything below a folder; absent is fine."""
        ...


class LocalFiles:
    """A folder on a POSIX disk: temporary name, fsync, rename or link, fsync of the folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _text(self, path: str) -> str:
        """The same where much is read: a Path costs as much as opening the file."""
        return f"{self.root}/{path.lstrip('/')}"

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        try:
            # unbuffered: a range costs the bytes that were asked for
            with open(self._text(path), "rb", buffering=0) as file:
                if start:
                    file.seek(start)
                return file.readall() if size is None else _read(file.fileno(), start, size)
        except (NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(*error.args) from error

    def write(self, path: str, data: bytes) -> None:
        target = self._path(path)
        temporary = _temporary(target, data)
        try:
            os.replace(temporary, target)
        except BaseException:
            _unlink(temporary)
            raise
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target = self._path(path)
        temporary = _temporary(target, data)
        try:
            # link fails where the name exists, and never shows a half-written file
            os.link(temporary, target)
        except FileExistsError:
            # a server of network disks may repeat a link whose answer was lost, and refuse its own work
            return os.stat(temporary).st_nlink == 2
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            return _create_in_place(target, data)  # a disk without hard links
        finally:
            _unlink(temporary)
        _sync_folder(target.parent)
        return True

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._text(folder)) if not name.startswith(TEMPORARY))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, folder: str) -> list[str]:
        found: list[str] = []
        _walk(self._text(folder), "", found)
        return sorted(found)

    def delete(self, path: str) -> None:
        target = self._path(path)
        if target.is_dir() and not target.is_symlink():
            # gone at once: a reader must not find a manifest beside half of its files
            doomed = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(target)


def _read(handle: int, start: int, size: int) -> bytes:
    """Exactly the range, or less at the end of the file; one system call gives at most 2 GiB."""
    parts = []
    while size > 0:
        part = os.pread(handle, size, start)
        if not part:
            break
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _temporary(target: Path, data: bytes) -> Path:
    """A synced file beside `target`, with the mode that the umask leaves."""
    _make_folder(target.parent)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        _write_new(temporary, data)
    except BaseException:
        _unlink(temporary)
        raise
    return temporary


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _create_in_place(target: Path, data: bytes) -> bool:
    try:
        _write_new(target, data)
    except FileExistsError:
        return False
    _sync_folder(target.parent)
    return True


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each entered durably in its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another writer made it; where it is a file, the next step says so
        os.mkdir(folder)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # moved away since, with all that is in it
        return
    try:
        os.fsync(handle)
    except OSError as error:
        # some network disks have no such call; they write names through
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _walk(folder: str, prefix: str, found: list[str]) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    _walk(entry.path, f"{prefix}{entry.name}/", found)
                else:
                    found.append(f"{prefix}{entry.name}")
    except (FileNotFoundError, NotADirectoryError):  # deleted while it was read
        return
