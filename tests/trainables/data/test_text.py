from __future__ import annotations

import gzip
import lzma
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from scalespec.trainables.data import text
from scalespec.trainables.data.text import load
from scalespec.trainables.data.tokenizer import tokenizer
from scalespec.trainables.errors import TaskError
from scalespec.trainables.spec import DataConfig

BYTES = tokenizer("bytes")
SAMPLE = bytes(range(97, 117)) * 50


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "sample.txt"
    path.write_bytes(SAMPLE)
    return path


def of(path: Path, context: int = 9, **options):
    return load(DataConfig("text", path=str(path), **options), BYTES, context)


def predicted(*splits: np.ndarray) -> list[int]:
    return [int(token) for split in splits for row in split for token in row[1:]]


def test_windows_predict_every_token_but_the_first_once_and_in_order(file):
    data = of(file)
    train, val = data.train[0], data.val[0]
    assert train.shape[1] == val.shape[1] == data.samples_per_example + 1 == 10
    count = (len(SAMPLE) - 1) // 9
    assert predicted(train, val) == list(SAMPLE[1 : 1 + 9 * count])
    assert all(row[0] == SAMPLE[9 * i] for i, row in enumerate(np.concatenate([train, val])))


def test_windows_are_views(file):
    data = of(file)
    assert np.shares_memory(data.train[0], data.val[0])
    assert data.train[0].strides == (9, 1)
    with pytest.raises(ValueError, match="read-only"):
        data.train[0][0, 0] = 1


def test_the_last_twentieth_is_held_out(file):
    data = of(file)
    assert (data.train_examples, data.val_examples) == (106, 5)
    assert predicted(data.val[0]) == list(SAMPLE[1 + 9 * 106 : 1 + 9 * 111])
    assert of(file, limit=3).val_examples == 1


def test_limit_counts_windows_of_both_splits(file):
    data = of(file, limit=40)
    assert (data.train_examples, data.val_examples) == (38, 2)
    np.testing.assert_array_equal(data.train[0], of(file).train[0][:38])
    assert of(file, limit=10_000).train_examples == 106


def test_compressed_files_are_the_same_text(file, tmp_path):
    packed = {"a.txt.xz": lzma.compress(SAMPLE), "b.txt.gz": gzip.compress(SAMPLE)}
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        assert of(tmp_path / name).identity == of(file).identity


def test_a_folder_is_its_files_in_order_of_names(tmp_path):
    (tmp_path / "2.txt").write_bytes(b"b" * 30)
    (tmp_path / "1.txt").write_bytes(b"a" * 30)
    (tmp_path / "readme.md").write_bytes(b"c" * 30)
    data = of(tmp_path, context=3)
    assert bytes(predicted(*data.train, *data.val)) == b"a" * 29 + b"\0" + b"b" * 30


def test_validation_files_are_the_validation_split(tmp_path):
    (tmp_path / "book_train.txt").write_bytes(b"a" * 100)
    (tmp_path / "book_val.txt").write_bytes(b"v" * 50)
    (tmp_path / "interval.txt").write_bytes(b"i" * 100)
    data = of(tmp_path, context=7)
    assert set(predicted(*data.val)) == {ord("v")}
    assert set(predicted(*data.train)) == {ord("a"), ord("i"), 0}
    limited = of(tmp_path, context=7, limit=10)
    assert (limited.train_examples, limited.val_examples) == (9, 1)


def test_document_marks_become_separators(tmp_path):
    (tmp_path / "books.txt").write_bytes(b"aaaa<|endoftext|>bbbb<|endoftext|>" + b"c" * 20)
    data = of(tmp_path / "books.txt", context=2)
    assert bytes(predicted(*data.train, *data.val)).startswith(b"aaa\0bbbb\0cc")


def test_identity_follows_content_context_and_split(file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_bytes(SAMPLE[:-1] + b"!")
    assert of(file).identity == of(file).identity
    assert (
        len({data.identity for data in (of(file), of(file, context=10), of(file, limit=100), of(other, context=37))})
        == 4
    )


def test_the_standard_library_is_real_source_text_without_tests():
    data = load(DataConfig("stdlib"), BYTES, 64)
    content = bytes(predicted(data.train[0], data.val[0]))
    assert b"class NamedTupleMeta(type):" in content  # typing
    assert b"class IdleConf" not in content
    assert b"class ProactorLoopCtrlC" not in content  # test.test_asyncio
    assert len(content) > 5_000_000
    assert data.identity == load(DataConfig("stdlib"), BYTES, 64).identity
    first = min(path.name for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    assert content[:40] == (Path(sysconfig.get_path("stdlib")) / first).read_bytes()[1:41]


def test_files_of_the_standard_library_that_are_not_utf8_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "pkg" / "tests").mkdir(parents=True)
    (tmp_path / "a.py").write_bytes(b"a" * 40)
    (tmp_path / "b.py").write_bytes("# -*- coding: latin-1 -*- é".encode("latin-1"))
    (tmp_path / "pkg" / "c.py").write_bytes(b"c" * 40)
    (tmp_path / "pkg" / "tests" / "d.py").write_bytes(b"d" * 40)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    data = load(DataConfig("stdlib"), BYTES, 4)
    assert bytes(predicted(*data.train, *data.val)) == b"a" * 39 + b"\0" + b"c" * 40


def test_reading_stops_at_the_limit(monkeypatch):
    """A small study on a large corpus does not read all of it."""
    taken = []

    def documents(_data):
        def endless():
            while True:
                taken.append(1)
                yield text.Document("endless", b"x" * 100)

        return endless(), None

    monkeypatch.setattr(text, "_documents", documents)
    assert load(DataConfig("any", limit=20), BYTES, 50).train_examples == 19
    assert len(taken) <= 11


def test_gpt2_windows_of_a_real_text(shared, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "data" / "gpt2_bpe" / "tiktoken_cache"))
    path = shared / "data" / "text" / "tinyshakespeare.txt"
    found = tokenizer("gpt2")
    data = load(DataConfig("text", path=str(path)), found, 128)
    assert data.train_examples + data.val_examples == (338_025 - 1) // 128
    assert found.encoding.decode(data.train[0][0].tolist()).startswith("First Citizen:\nBefore we proceed any further")


def test_a_hub_dataset_by_name(tmp_path):
    """The same code path as a name on the hub, on a dataset in a local folder."""
    import datasets

    for split, letter in (("train", "t"), ("validation", "v")):
        datasets.Dataset.from_dict({"text": [letter * 30, letter * 20]}).to_parquet(tmp_path / f"{split}.parquet")
    data = load(DataConfig(str(tmp_path)), BYTES, 5)
    assert bytes(predicted(*data.train)) == b"t" * 29 + b"\0" + b"t" * 20
    assert bytes(predicted(*data.val)) == b"v" * 29 + b"\0" + b"v" * 20


def test_a_hub_dataset_that_cannot_be_reached_is_refused_with_the_remedy():
    with pytest.raises(TaskError, match=r"data\.source.*no-such-owner/no-such-text.*data\.path=DIR") as caught:
        load(DataConfig("no-such-owner/no-such-text"), BYTES, 5)
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_without_text_is_refused(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"words": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(TaskError, match="no column text"):
        load(DataConfig(str(tmp_path)), BYTES, 5)


@pytest.mark.parametrize("name", ["missing.txt", "notes.md", "empty"])
def test_paths_without_text_are_refused(tmp_path, name):
    (tmp_path / "notes.md").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=rf"data\.path: .*{name}"):
        of(tmp_path / name)


@pytest.mark.parametrize(("name", "pack"), [("a.txt.xz", lzma.compress), ("a.txt.gz", gzip.compress)])
def test_truncated_and_corrupt_files_are_refused_by_name(tmp_path, name, pack):
    content = pack(np.random.default_rng(0).bytes(1000))
    for damaged in (content[:-20], b"not packed", content[:200] + b"\0\0\0\0" + content[204:]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(TaskError, match=rf"cannot read .*{name}"):
            of(tmp_path / name)


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "short.txt").write_bytes(b"0123456789")
    with pytest.raises(TaskError, match=r"too little text for windows of 9 tokens"):
        of(tmp_path / "short.txt")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(TaskError, match=r"too little text"):
        of(tmp_path / "empty.txt")


def test_text_that_is_not_utf8_is_refused_for_subword_tokenizers(tmp_path, shared, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "data" / "gpt2_bpe" / "tiktoken_cache"))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 50)
    with pytest.raises(TaskError, match=r"latin\.txt is not UTF-8.*tokenizer=bytes"):
        load(DataConfig("text", path=str(tmp_path / "latin.txt")), tokenizer("gpt2"), 4)
    assert of(tmp_path / "latin.txt").train_examples == 4
