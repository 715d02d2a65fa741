"""The streams of random numbers of a run, all functions of its seed."""

from __future__ import annotations

import hashlib

import numpy as np


def seeded(seed: int, stream: str, *more: int) -> int:
    """A 63-bit seed for one named stream of a run: `init`, `order`, `dropout`. Streams are independent of each other."""
    word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")
    return int(np.random.SeedSequence([seed, word, *more]).generate_state(1, np.uint64)[0] >> 1)


def order(seed: int, examples: int) -> np.ndarray:
    """The seed's permutation of the training examples, the same at every width; a data fraction is a prefix of it."""
    return np.random.Generator(np.random.PCG64(seeded(seed, "order"))).permutation(examples)
