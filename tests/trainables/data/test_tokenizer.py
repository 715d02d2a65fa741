from __future__ import annotations

import numpy as np
import pytest
import tiktoken

from scalespec.trainables.data.tokenizer import byte_encoding, tokenizer
from scalespec.trainables.errors import TaskError


@pytest.fixture
def gpt2(shared, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "data" / "gpt2_bpe" / "tiktoken_cache"))
    return tokenizer("gpt2")


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界\n\t\0 🙂", "".join(map(chr, range(300)))])
def test_byte_ids_are_those_of_the_encoding(text):
    """The fast path gives what tiktoken itself gives."""
    found = tokenizer("bytes")
    ids = found.encode(text.encode())
    assert ids.tolist() == byte_encoding().encode(text) == list(text.encode())
    assert byte_encoding().decode(ids.tolist()) == text


def test_bytes_are_a_tiktoken_encoding_of_256_ids():
    found = tokenizer("bytes")
    assert isinstance(found.encoding, tiktoken.Encoding)
    assert found.vocab == 256
    assert found.dtype == np.uint8
    assert [found.encoding.decode_single_token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]


def test_bytes_take_what_is_not_utf8():
    assert tokenizer("bytes").encode(b"\xff\x00\xc3").tolist() == [255, 0, 195]


def test_gpt2_ids_are_the_published_ones(gpt2):
    assert gpt2.vocab == 50257
    assert gpt2.dtype == np.uint16
    assert gpt2.separator == 50256
    assert gpt2.encode(b"Hello world, scaling laws!").tolist() == [15496, 995, 11, 20796, 3657, 0]


def test_text_that_looks_special_stays_text(gpt2):
    ids = gpt2.encode(b"<|endoftext|>")
    assert gpt2.separator not in ids
    assert gpt2.encoding.decode(ids.tolist()) == "<|endoftext|>"


def test_gpt2_counts_the_published_tokens_of_tiny_shakespeare(gpt2, shared):
    assert len(gpt2.encode((shared / "data" / "text" / "tinyshakespeare.txt").read_bytes())) == 338_025


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(TaskError, match=r"data\.tokenizer.*'gpt-9'.*bytes.*gpt2"):
        tokenizer("gpt-9")


def test_an_encoding_that_cannot_be_fetched_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr(
        "tiktoken.load.read_file", lambda _path: (_ for _ in ()).throw(ConnectionError("no network\nat all"))
    )
    with pytest.raises(TaskError, match=r"cannot fetch r50k_base \(no network\).*TIKTOKEN_CACHE_DIR") as caught:
        tokenizer("r50k_base")
    assert "\n" not in str(caught.value)
