"""The four files of MNIST with random pixels, in the format of http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def arrays(train: int = 50, test: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, (count, 28, 28)) if "images" in name else rng.integers(0, 10, count)
        for name, count in zip(NAMES, (train, train, test, test))
    }


def written(folder: Path, train: int = 50, test: int = 20) -> Path:
    """The folder, with the files in it."""
    for name, array in arrays(train, test).items():
        (folder / name).write_bytes(idx(array))
    return folder
