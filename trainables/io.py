"""Where the results of a run go: the `RunIO` protocol, and what passes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor


class State(NamedTuple):
    """A point from which training goes on bit for bit."""

    step: int
    tensors: Mapping[str, Tensor]
    """`model.<name>`, `optim.<name>.<slot>` and the loop's own accumulators."""
    meta: Mapping[str, Any]
    """JSON scalars."""


class ValRows(NamedTuple):
    """Per-example validation results, row i = example i."""

    loss: np.ndarray
    correct: np.ndarray | None
    select: np.ndarray
    """bool: True in the selection half of the fixed permutation."""


class Media(NamedTuple):
    """Something to look at that a run made: an image, a text, a table."""

    name: str
    """File name without its ending: letters, digits, `.`, `_` and `-`."""
    kind: str
    """image (PNG) | text (UTF-8) | table (JSON: {"columns": [...], "rows": [[...]]})."""
    data: bytes


class RunIO(Protocol):
    """Where one run (or one family's trunk) keeps its results. Only rank 0 calls it.

    Nothing is visible to readers before it is committed; what an attempt commits after a newer one has claimed the run does not
    count.
    """

    def log(self, step: int, samples: int, flops: float, metrics: Mapping[str, float]) -> None:
        """Keeps metrics of a step in memory until the next commit."""
        ...

    def save_state(self, state: State, *, keep: bool = False) -> None:
        """Commits the metrics logged so far and, with them, a resume state; `keep` exempts it from the pruning to two."""
        ...

    def save_weights(
        self, step: int, samples: int, flops: float, weights: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        """Commits the analysis weights of a step."""
        ...

    def save_media(self, step: int, media: Sequence[Media]) -> None:
        """Commits what a step has to show."""
        ...

    def load_latest(self, at_most: int | None = None) -> State | None:
        """The newest valid state up to a step; one that fails its manifest is passed over."""
        ...

    def checkpoint_steps(self) -> Sequence[int]:
        """Steps whose analysis weights are committed."""
        ...

    def adopt(self, trunk: Any, step: int, checkpoint_steps: Sequence[int]) -> None:
        """Copies a trunk's metrics up to `step` and its checkpoints at `checkpoint_steps` into this run."""
        ...

    def finish(self, result: Mapping[str, Any], val: ValRows | None) -> None:
        """Commits what is left, then the validation rows, then `result.json`, last."""
        ...
