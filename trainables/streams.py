"""The streams of random numbers of a run, all functions of its seed."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@functools.cache
def _word(stream: str) -> int:
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")


def seeded(seed: int, stream: str, *more: int) -> int:
    """A 63-bit seed for one named stream of a run: `init`, `order`, `dropout`. Streams are independent of each other."""
    return int(np.random.SeedSequence([seed, _word(stream), *more]).generate_state(1, np.uint64)[0] >> 1)


def order(seed: int, examples: int) -> np.ndarray:
    """The seed's permutation of the training examples, the same at every width; a data fraction is a prefix of it."""
    return np.random.Generator(np.random.PCG64(seeded(seed, "order"))).permutation(examples)


@dataclass(frozen=True)
class Batches:
    """Which training examples each step of a run sees: a prefix of the seed's permutation; later epochs shuffle it anew."""

    seed: int
    examples: int
    """All training examples; a run sees `fraction` of them."""
    fraction: Fraction
    epochs: int
    batch_size: int

    def of(self, step: int) -> np.ndarray:
        """Indices of the global batch of a step."""
        first = step * self.batch_size
        if self.epochs == 1:
            return self._permutation[first : first + self.batch_size]
        positions = np.arange(first, first + self.batch_size)
        out = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(positions // self.prefix):
            rows = positions // self.prefix == epoch
            shuffled = _epoch_order(self.seed, self.examples, self.prefix, int(epoch))
            out[rows] = shuffled[positions[rows] % self.prefix]
        return out

    @functools.cached_property
    def prefix(self) -> int:
        """Training examples of the fraction."""
        return int(self.fraction * self.examples)

    @functools.cached_property
    def _permutation(self) -> np.ndarray:
        return order(self.seed, self.examples)


@functools.lru_cache(maxsize=2)  # a batch may lie in two epochs
def _epoch_order(seed: int, examples: int, prefix: int, epoch: int) -> np.ndarray:
    rows = order(seed, examples)[:prefix]
    return rows if epoch == 0 else np.random.Generator(np.random.PCG64(seeded(seed, "order", epoch))).permutation(rows)
