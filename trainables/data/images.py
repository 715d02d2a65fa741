"""Images with labels: MNIST's IDX files, or a Hugging Face dataset with the columns `image` and `label`."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from scalespec.trainables.data import hub, identity
from scalespec.trainables.errors import TaskError
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Dataset

HUB_NAMES = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}
SHAPE, CLASSES = (28, 28), 10
_STEMS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
"""Type code of IDX; format: https://yann.lecun.org/exdb/mnist/"""

Arrays = tuple[np.ndarray, np.ndarray]


def load(data: DataConfig) -> Dataset:
    """uint8 images (n, 28, 28) and int64 labels (n,); validation is the official test split.

    `data.path` is a folder with the four IDX files, plain or `.gz`; without it `data.source` is fetched by name. The
    first `data.limit` images of the training split are kept. Raises TaskError naming the file or source and the remedy.
    """
    where = f"data.path: {data.path}" if data.path else f"data.source: {data.source}"
    train, val = _from_folder(Path(data.path)) if data.path else _from_hub(HUB_NAMES.get(data.source, data.source))
    train = train[0][: data.limit], train[1][: data.limit]
    for split, (images, labels) in (("train", train), ("test", val)):
        _check(f"{where}, split {split}", images, labels)
    return Dataset(train, val, samples_per_example=1, identity=identity(*train, *val), description=where)


def _check(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.shape[1:] != SHAPE:
        raise TaskError(
            f"{where}: images are {' × '.join(map(str, images.shape[1:]))} pixels, not 28 × 28; use another source"
        )
    if len(images) != len(labels):
        raise TaskError(f"{where}: {len(images)} images but {len(labels)} labels; the files do not belong together")
    if not len(images):
        raise TaskError(f"{where}: no images")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise TaskError(
            f"{where}: labels from {labels.min()} to {labels.max()}, not 0 to {CLASSES - 1}; use another source"
        )


def _from_folder(folder: Path) -> tuple[Arrays, Arrays]:
    train, test = (
        (
            read_idx(_find(folder, f"{stem}-images-idx3-ubyte"), dimensions=3),
            read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"), dimensions=1).astype(np.int64),
        )
        for stem in _STEMS.values()
    )
    return train, test


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise TaskError(f"data.path: {folder} has no {name} or {name}.gz; set it to the folder with MNIST's four IDX files")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file, plain or `.gz`. Raises TaskError naming the file if it is not exactly that."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = bytearray(stream.read())
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read ({error}); replace the file") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise TaskError(
            f"{path} is no IDX file of {dimensions} dimensions of bytes (it starts with {content[:4].hex()}); replace it"
        )
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    if len(content) != header + math.prod(shape):
        raise TaskError(
            f"{path} has {len(content)} bytes where its header {shape} asks for {header + math.prod(shape)}; replace the file"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _from_hub(name: str) -> tuple[Arrays, Arrays]:
    splits = hub.splits(name)
    for split in ("train", "test"):
        if split not in splits or not {"image", "label"} <= set(splits[split].column_names):
            raise TaskError(
                f"data.source: {name} has no split {split} with the columns image and label; use --set data.path=DIR"
            )
    return _decoded(splits["train"]), _decoded(splits["test"])


def _decoded(split: hub.Split) -> Arrays:
    images, labels = [], []
    for batch in split.iter(batch_size=1000):
        images.append(np.stack([np.asarray(image, np.uint8) for image in batch["image"]]))
        labels.append(np.asarray(batch["label"], np.int64))
    return np.concatenate(images), np.concatenate(labels)
