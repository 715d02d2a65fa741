"""Storage that counts what is asked of it."""

from __future__ import annotations

from collections import Counter

from scalespec.trainables.files import Files


class Counted:
    """`Files` around others: `calls` by operation, and the bytes that went through."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.calls: Counter[str] = Counter()
        self.bytes_read = self.bytes_written = 0

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        self.calls["read"] += 1
        data = self.files.read(path, start, size)
        self.bytes_read += len(data)
        return data

    def write(self, path: str, data: bytes) -> None:
        self.calls["write"] += 1
        self.bytes_written += len(data)
        self.files.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self.calls["create"] += 1
        self.bytes_written += len(data)
        return self.files.create(path, data)

    def names(self, folder: str) -> list[str]:
        self.calls["names"] += 1
        return self.files.names(folder)

    def walk(self, folder: str) -> list[str]:
        self.calls["walk"] += 1
        return self.files.walk(folder)

    def delete(self, path: str) -> None:
        self.calls["delete"] += 1
        self.files.delete(path)
