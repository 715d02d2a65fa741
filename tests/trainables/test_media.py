from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest

from scalespec.trainables import media
from scalespec.trainables.io import Media


def decoded(data: bytes) -> np.ndarray:
    """The pixels of a PNG without filters, its checksums checked; an independent reader of what the standard says."""
    assert data[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + content),)
        chunks[kind] = content
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3) if colours == 2 else rows[:, 1:]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (5, 7, 3), (300, 2)])
def test_an_image_is_a_png_that_holds_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    made = media.image("noise", pixels)
    assert (made.name, made.kind) == ("noise", "image")
    assert np.array_equal(decoded(made.data), pixels)


def test_other_readers_read_it_too():
    image = pytest.importorskip("PIL.Image")
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(image.open(io.BytesIO(media.png(pixels)))), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(ValueError, match="an image is uint8"):
        media.png(pixels)


def test_texts_and_tables():
    assert media.text("words", "à ▸ b") == Media("words", "text", "à ▸ b".encode())
    made = media.table("scores", ["task", "share"], [["a", 0.5], ["b", None]])
    assert json.loads(made.data) == {"columns": ["task", "share"], "rows": [["a", 0.5], ["b", None]]}
    with pytest.raises(ValueError, match="JSON"):
        media.table("scores", ["x"], [[float("nan")]])
