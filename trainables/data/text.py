"""Text as windows of tokens: the interpreter's own library, files on disk, or a Hugging Face dataset."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scalespec.trainables.data import hub, identity
from scalespec.trainables.data.tokenizer import Tokenizer
from scalespec.trainables.errors import TaskError
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Dataset

VAL_PERCENT = 5
DOCUMENT_MARK = b"<|endoftext|>"
"""Ends a document within a file, as GPT-2's corpora write it; it becomes the tokenizer's separator."""

_OPEN: dict[str, Callable[[Path, Literal["rb"]], Any]] = {
    ".txt": Path.open,
    ".txt.xz": lzma.open,
    ".txt.gz": gzip.open,
}
_VAL = re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE)
_SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}


class Document(NamedTuple):
    name: str
    text: bytes


def load(data: DataConfig, tokenizer: Tokenizer, context: int) -> Dataset:
    """Windows of `context` + 1 tokens, one array (n, context + 1) a split, read-only views that overlap by one token.

    Window i predicts tokens i·context + 1 to (i + 1)·context, so no token is predicted twice. Sources: `data.path`, a
    file `.txt`, `.txt.xz` or `.txt.gz` or a folder of them; `stdlib`, the source text of the running interpreter's
    standard library; else a Hugging Face dataset `owner/name` or `owner/name:config` with a column `text`.

    Validation is the source's own split (files with `val` in their name, or the dataset's), else the last 5 % of the
    windows. `data.limit` counts windows of both splits. Raises TaskError naming the source and the remedy.
    """
    train, val = _documents(data)
    limit = data.limit
    if val is None:
        windows = _windows(_tokens(train, tokenizer, limit and limit * context + 1), context)[:limit]
        held_out = max(1, len(windows) * VAL_PERCENT // 100)
        splits = windows[:-held_out], windows[-held_out:]
    else:
        room = limit and max(1, limit * VAL_PERCENT // 100)
        held = _windows(_tokens(val, tokenizer, room and room * context + 1), context)[:room]
        room = limit and max(0, limit - len(held))
        splits = _windows(_tokens(train, tokenizer, room and room * context + 1), context)[:room], held
    if not all(map(len, splits)):
        raise TaskError(
            f"{_where(data)}: too little text for windows of {context} tokens in both splits; "
            "give more text, raise data.limit or lower the task's option context"
        )
    return Dataset(
        train=splits[:1],
        val=splits[1:],
        samples_per_example=context,
        identity=identity(*splits),
        description=f"{_where(data)}, tokenizer {tokenizer.name}, windows of {context} tokens",
    )


def _where(data: DataConfig) -> str:
    return f"data.path: {data.path}" if data.path else f"data.source: {data.source}"


def _documents(data: DataConfig) -> tuple[Iterable[Document], Iterable[Document] | None]:
    """Documents for training, and for validation where the source has a split of its own."""
    if data.path is not None:
        return _from_files(Path(data.path))
    if data.source == "stdlib":
        return _standard_library(), None
    splits = hub.splits(data.source)
    if "train" not in splits or "text" not in splits["train"].column_names:
        raise TaskError(
            f"data.source: {data.source} has no column text in a split train; use another or --set data.path=DIR"
        )
    own = next((splits[name] for name in ("validation", "test") if name in splits), None)
    return _rows(data.source, splits["train"]), None if own is None else _rows(data.source, own)


def _rows(name: str, split: hub.Split) -> Iterator[Document]:
    for batch in split.iter(batch_size=1000):
        for text in batch["text"]:
            yield Document(name, text.encode())


def _from_files(path: Path) -> tuple[Iterator[Document], Iterator[Document] | None]:
    suffixes = tuple(_OPEN)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(suffixes))
    else:
        files = [path] if path.is_file() and path.name.endswith(suffixes) else []
    if not files:
        raise TaskError(
            f"data.path: {path} is no file {', '.join(suffixes)} and no folder with one; set data.path to one that is"
        )
    val = [file for file in files if _VAL.search(file.name)] if path.is_dir() else []
    train = [file for file in files if file not in val]
    return _read(train), _read(val) if val else None


def _read(files: Iterable[Path]) -> Iterator[Document]:
    for file in files:
        opener = next(_OPEN[suffix] for suffix in _OPEN if file.name.endswith(suffix))
        try:
            with opener(file, "rb") as stream:
                content: bytes = stream.read()
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise TaskError(f"data.path: cannot read {file} ({error}); replace the file") from error
        for text in content.split(DOCUMENT_MARK):
            yield Document(str(file), text)


def _standard_library() -> Iterator[Document]:
    """Source files under sysconfig's `stdlib` in the order of their relative paths; those that are not UTF-8 are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    if not paths:
        raise TaskError(f"data.source: stdlib has no source files in {root}; set data.path to a text file")
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        text = path.read_bytes()
        try:
            text.decode()
        except UnicodeDecodeError:
            continue
        yield Document(str(path), text)


def _tokens(documents: Iterable[Document], tokenizer: Tokenizer, enough: int | None) -> np.ndarray:
    """Tokens of the documents in a row with separators between them; reading stops once there are `enough`."""
    separator = np.array([tokenizer.separator], tokenizer.dtype)
    parts: list[np.ndarray] = []
    total = 0
    for document in documents:
        try:
            tokens = tokenizer.encode(document.text)
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{document.name} is not UTF-8 ({error}); convert it, or use --set data.tokenizer=bytes"
            ) from error
        if len(tokens):
            parts += [tokens] if total == 0 else [separator, tokens]
            total += len(tokens) + (total > 0)
        if enough is not None and total >= enough:
            break
    return np.concatenate(parts)[:enough] if parts else np.empty(0, tokenizer.dtype)


def _windows(tokens: np.ndarray, context: int) -> np.ndarray:
    """(n, context + 1) read-only view: row i starts at token i·context."""
    if len(tokens) <= context:
        return np.empty((0, context + 1), tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context]
