"""Making `Media`: PNG images, texts and tables, with nothing but the standard library and numpy."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from scalespec.trainables.io import Media

COLOUR_TYPES = {1: 0, 3: 2}
"""Channels → PNG's colour type: grey, RGB."""


def image(name: str, pixels: np.ndarray) -> Media:
    """uint8 pixels (H, W) in grey or (H, W, 3) in RGB, as PNG."""
    return Media(name, "image", png(pixels))


def text(name: str, content: str) -> Media:
    """A text, as UTF-8."""
    return Media(name, "text", content.encode())


def table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | bool | None]]) -> Media:
    """A table with one value a column in each row."""
    content = {"columns": list(columns), "rows": [list(row) for row in rows]}
    return Media(name, "table", json.dumps(content, allow_nan=False).encode())


def png(pixels: np.ndarray) -> bytes:
    """A PNG file (https://www.w3.org/TR/png-3/) of 8 bits a channel; rows are unfiltered. Raises ValueError for other arrays."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in COLOUR_TYPES:
        raise ValueError(f"an image is uint8 (H, W) or (H, W, 3), not {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    filters = np.zeros((height, 1), np.uint8)
    rows = np.hstack([filters, np.ascontiguousarray(pixels).reshape(height, width * channels)])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
