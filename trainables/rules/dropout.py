"""Dropout whose mask belongs to the example: a function of seed, step, layer and place in the global batch.

Torch's own dropout draws as its process goes along, so two workers drop other features than one. Here every worker draws the
mask of the whole global batch from the same seed and takes the rows of its own examples: a run has the same numbers with any
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalespec.trainables.streams import seeded


@dataclass(frozen=True)
class Place:
    """Where a worker's examples lie: rows `first` … `first` + `rows` of a global batch of `total`."""

    seed: int
    step: int
    first: int
    rows: int
    total: int


class Dropout(nn.Module):
    """Zeroes a share `p` of the features while training and scales the others by 1/(1 − p).

    The first axis of its input is the examples of the batch, alone or folded with others behind it (B·T). Outside a step of
    the training loop it is torch's dropout; on the meta device, where models are counted, it draws nothing.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a share of features to drop lies in [0, 1), not {p}")
        self.p = p
        self._place: Place | None = None
        self._layer = 0
        self._generator: torch.Generator | None = None
        """Made at the first use in a step; further uses in that step go on with it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.is_meta:
            return x
        if self._place is None:
            return F.dropout(x, self.p)
        return x * self._mask(x, self._place)

    def _mask(self, x: Tensor, place: Place) -> Tensor:
        """0 or 1/(1 − p) for each element of this worker's examples."""
        folded, rest = divmod(x.shape[0], place.rows)
        if rest:
            raise ValueError(f"dropout: {x.shape[0]} rows are no multiple of the batch of {place.rows} examples")
        if self._generator is None:
            self._generator = torch.Generator(x.device)
            self._generator.manual_seed(seeded(place.seed, "dropout", place.step, self._layer))
        whole = x.new_empty((place.total * folded, *x.shape[1:])).bernoulli_(1 - self.p, generator=self._generator)
        return whole[place.first * folded : (place.first + place.rows) * folded].div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def layers_of(model: nn.Module) -> list[Dropout]:
    """The layers of a model that drop anything, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Dropout) and module.p]


@contextmanager
def placed(layers: Sequence[Dropout], place: Place) -> Iterator[None]:
    """Inside, the masks of `layers` are those of one step and of the worker's examples."""
    for index, layer in enumerate(layers):
        layer._place, layer._layer, layer._generator = place, index, None
    try:
        yield
    finally:
        for layer in layers:
            layer._place = layer._generator = None
