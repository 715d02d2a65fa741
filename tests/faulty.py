"""Storage in memory, and storage that fails or dies at a call of one's choice."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from scalespec.trainables.files import Files


class DeadError(BaseException):
    """The process is gone: nothing of it runs any more, not even what cleans up after an Exception."""


class MemoryFiles:
    """`Files` in a dictionary."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][start : None if size is None else start + size]

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def create(self, path: str, data: bytes) -> bool:
        return self.files.setdefault(path, data) is data

    def names(self, folder: str) -> list[str]:
        return sorted({path.partition("/")[0] for path in self.walk(folder)})

    def walk(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted(path[len(prefix) :] for path in self.files if path.startswith(prefix))

    def delete(self, path: str) -> None:
        for name in [name for name in self.files if name == path or name.startswith(f"{path}/")]:
            del self.files[name]


class Faults:
    """Counts calls; the one numbered `at` (from 1) goes wrong.

    die: not made, and the process is gone. lost: made, and the process is gone. full: not made, an error of a full disk.
    unanswered: made, but the answer is an error.
    """

    KINDS = ("die", "lost", "full", "unanswered")

    def __init__(self, at: int = 0, kind: str = "die") -> None:
        self.at, self.kind, self.count, self.dead = at, kind, 0, False
        self.interpose: Callable[[], None] | None = None
        """Done instead of a fault, before that call: what another process does meanwhile."""

    def around(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.dead:
            raise DeadError
        self.count += 1
        if self.count != self.at:
            return call(*arguments, **named)
        if self.interpose is not None:
            self.interpose()
            return call(*arguments, **named)
        if self.kind in ("lost", "unanswered"):
            call(*arguments, **named)
        if self.kind in ("die", "lost"):
            self.dead = True
            raise DeadError
        raise OSError(28 if self.kind == "full" else 5, "no space left" if self.kind == "full" else "no answer")


class FaultyFiles:
    """`Files` around others, each call of which goes through `faults`."""

    def __init__(self, files: Files, faults: Faults) -> None:
        self.files, self.faults = files, faults

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        found: bytes = self.faults.around(self.files.read, path, start, size)
        return found

    def write(self, path: str, data: bytes) -> None:
        self.faults.around(self.files.write, path, data)

    def create(self, path: str, data: bytes) -> bool:
        return bool(self.faults.around(self.files.create, path, data))

    def names(self, folder: str) -> list[str]:
        found: list[str] = self.faults.around(self.files.names, folder)
        return found

    def walk(self, folder: str) -> list[str]:
        found: list[str] = self.faults.around(self.files.walk, folder)
        return found

    def delete(self, path: str) -> None:
        self.faults.around(self.files.delete, path)


class FaultySystem:
    """Stands for the module `os` in `trainables.files`: each system call goes through `faults`."""

    CALLS = (
        "open",
        "write",
        "fsync",
        "close",
        "link",
        "replace",
        "rename",
        "unlink",
        "mkdir",
        "stat",
        "listdir",
        "scandir",
    )

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in self.CALLS:
            return found
        return lambda *arguments, **named: self.faults.around(found, *arguments, **named)
