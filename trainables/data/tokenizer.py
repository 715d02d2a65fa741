"""Tokenizers by name: any encoding of tiktoken, and `bytes`, whose ids are the 256 byte values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tiktoken

from scalespec.trainables.errors import TaskError


@dataclass(frozen=True)
class Tokenizer:
    """A tiktoken encoding with what windows of text need beside it."""

    name: str
    encoding: tiktoken.Encoding
    separator: int
    """Id placed between two documents: `<|endoftext|>`, or for bytes the NUL that text does not contain."""

    @property
    def vocab(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.encoding.n_vocab)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned type that holds every id."""
        return np.min_scalar_type(self.vocab - 1)

    def encode(self, document: bytes) -> np.ndarray:
        """Ids of a UTF-8 document; text that looks like a special token stays text.

        Raises UnicodeDecodeError for bytes that are not UTF-8, except under `bytes`, which takes any.
        """
        if self.name == "bytes":
            return np.frombuffer(document, np.uint8)
        ids: np.ndarray = self.encoding.encode_to_numpy(document.decode(), disallowed_special=())
        return ids.astype(self.dtype)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become �."""
        return str(self.encoding.decode(ids, errors="replace"))


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name. Raises TaskError for an unknown name, or an encoding that cannot be fetched."""
    if name == "bytes":
        return Tokenizer(name, byte_encoding(), separator=0)
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise TaskError(f"data.tokenizer: {name!r} is not one of bytes, {', '.join(known)}")
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # whatever the network, its proxies or the cache folder raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TaskError(
            f"data.tokenizer: cannot fetch {name} ({reason}); set TIKTOKEN_CACHE_DIR to a folder that holds its files, "
            "or use --set data.tokenizer=bytes"
        ) from error
    return Tokenizer(name, encoding, separator=encoding.eot_token)


def byte_encoding() -> tiktoken.Encoding:
    """The 256 byte values as an encoding: id = byte, no merges, no special tokens."""
    return tiktoken.Encoding(
        "bytes", pat_str="(?s:.)", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
