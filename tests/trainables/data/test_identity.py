from __future__ import annotations

import numpy as np
import pytest

from scalespec.trainables.data import identity


def test_equal_content_has_equal_identity_whatever_its_layout():
    array = np.arange(6000, dtype=np.int32).reshape(20, 300)
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(10), 4)[::3]
    assert identity(array) == identity(np.asfortranarray(array)) == identity(array.astype(">i4"))
    assert identity(windows) == identity(windows.copy())


@pytest.mark.parametrize(
    "other",
    [
        (np.zeros((2, 6), np.uint8),),
        (np.zeros((3, 4), np.int8),),
        (np.zeros((3, 4), np.uint8), np.zeros(0, np.uint8)),
        (np.zeros((1, 4), np.uint8), np.zeros((2, 4), np.uint8)),
        (np.eye(3, 4, dtype=np.uint8),),
    ],
)
def test_dtype_shape_split_and_content_matter(other):
    assert identity(np.zeros((3, 4), np.uint8)) != identity(*other)


def test_large_arrays_are_hashed_whole():
    """Longer than one chunk of the hash, with the difference in the last element."""
    array = np.zeros((3, 9_000_000), np.uint8)
    changed = array.copy()
    changed[-1, -1] = 1
    assert identity(array) != identity(changed)
    assert len(identity(array)) == 64
