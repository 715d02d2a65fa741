"""Data sources: each prepares arrays of examples, the same bytes on every machine that reads the same input."""

from __future__ import annotations

import hashlib

import numpy as np

_CHUNK_BYTES = 1 << 24


def identity(*arrays: np.ndarray) -> str:
    """sha256 over dtype, shape and elements of each array, in order; memory layout does not matter."""
    digest = hashlib.sha256()
    for array in arrays:
        little = array.dtype.newbyteorder("<")
        digest.update(f"{little.str}{array.shape}".encode())
        rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes)) if array.ndim else 1
        for start in range(0, len(array) if array.ndim else 1, rows):
            part = array[start : start + rows] if array.ndim else array
            digest.update(np.ascontiguousarray(part, dtype=little).data)
    return digest.hexdigest()
