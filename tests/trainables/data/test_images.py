from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from mnist_files import NAMES, arrays, idx, written

from scalespec.trainables.data.images import load, read_idx
from scalespec.trainables.errors import TaskError
from scalespec.trainables.spec import DataConfig


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path)


def of(folder: Path, limit: int | None = None):
    return load(DataConfig("mnist", path=str(folder), limit=limit))


def test_files_become_the_official_splits(folder):
    data, expected = of(folder), arrays()
    for found, name in zip((*data.train, *data.val), NAMES):
        np.testing.assert_array_equal(found, expected[name])
    assert [array.dtype for array in data.train] == [np.uint8, np.int64]
    assert data.samples_per_example == 1


def test_packed_files_are_the_same_data(folder, tmp_path_factory):
    packed = tmp_path_factory.mktemp("packed")
    for name in NAMES:
        (packed / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    assert of(packed).identity == of(folder).identity


def test_limit_caps_the_training_images_alone(folder):
    data = of(folder, limit=7)
    assert (data.train_examples, data.val_examples) == (7, 20)
    assert data.identity != of(folder).identity


def test_identity_covers_images_and_labels_of_both_splits(folder):
    seen = {of(folder).identity}
    for name in NAMES:
        original = (folder / name).read_bytes()
        last = original[-1] + 1 if original[-1] < 9 else 0
        (folder / name).write_bytes(original[:-1] + bytes([last]))
        seen.add(of(folder).identity)
        (folder / name).write_bytes(original)
    assert len(seen) == 5


def test_real_mnist(shared):
    data = of(shared / "data" / "mnist")
    assert (data.train_examples, data.val_examples) == (60_000, 10_000)
    pixels = data.train[0] / 255
    assert pixels.mean() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std() == pytest.approx(0.3081, abs=5e-5)
    assert np.bincount(data.val[1]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(TaskError, match=rf"data\.path: .* has no {name}"):
        of(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["short", "long", "magic", "type", "empty"])
def test_damaged_files_are_named(folder, name, damage):
    content = (folder / name).read_bytes()
    wrong = {
        "short": content[:-1],
        "long": content + b"\0",
        "magic": b"\x1f\x8b" + content[2:],
        "type": content[:2] + b"\x0d" + content[3:],
        "empty": b"",
    }
    (folder / name).write_bytes(wrong[damage])
    with pytest.raises(TaskError, match=name):
        of(folder)


@pytest.mark.parametrize("damage", ["truncated", "not packed", "flipped"])
def test_damaged_packed_files_are_named(tmp_path, damage):
    path = tmp_path / "images.gz"
    content = gzip.compress(idx(arrays()[NAMES[0]]))
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    path.write_bytes({"truncated": content[:-30], "not packed": b"plain", "flipped": flipped}[damage])
    with pytest.raises(TaskError, match=r"images\.gz cannot be read"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(49), "50 images but 49 labels"),
        ("t10k-labels-idx1-ubyte", np.full(20, 10), "labels from 10 to 10"),
        ("train-images-idx3-ubyte", np.zeros((50, 32, 32)), "32 × 32"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, name, array, message):
    (folder / name).write_bytes(idx(array))
    with pytest.raises(TaskError, match=message):
        of(folder)


def test_a_hub_dataset_by_name(tmp_path):
    """The same code path as a name on the hub, on a dataset in a local folder."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    expected = arrays()
    for split, stem in (("train", "train"), ("test", "t10k")):
        rows = {
            "image": list(expected[f"{stem}-images-idx3-ubyte"].astype(np.uint8)),
            "label": expected[f"{stem}-labels-idx1-ubyte"].tolist(),
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    data = load(DataConfig(str(tmp_path)))
    for found, name in zip((*data.train, *data.val), NAMES):
        np.testing.assert_array_equal(found, expected[name])
    assert [array.dtype for array in data.train] == [np.uint8, np.int64]


def test_without_network_and_cache_the_remedy_is_named(tmp_path, monkeypatch):
    with pytest.raises(TaskError, match=r"data\.source.*ylecun/mnist.*data\.path=DIR") as caught:
        load(DataConfig("mnist"))
    assert "\n" not in str(caught.value)
