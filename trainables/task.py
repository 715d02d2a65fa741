"""The contract of a task: a model family over width, with its data.

A task of your own is a class with the members of `Task`, named in the study as `package.module:ClassName`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from scalespec.trainables.errors import TaskError
from scalespec.trainables.keys import keys_of
from scalespec.trainables.spec import DataConfig, Scalar


@dataclass(frozen=True)
class Dataset:
    """Prepared examples: row i of every array of a split is example i. Arrays may be memory maps or strided views."""

    train: tuple[np.ndarray, ...]
    val: tuple[np.ndarray, ...]
    samples_per_example: int
    """1 for images; the context length (predicted tokens) for text."""
    identity: str
    """sha256 of the prepared arrays; see `trainables.data.identity`."""
    description: str = ""
    """Where it came from, for MLflow's data lineage."""

    @property
    def train_examples(self) -> int:
        return len(self.train[0])

    @property
    def val_examples(self) -> int:
        return len(self.val[0])


class Losses(NamedTuple):
    """Per-example results of one batch of B examples."""

    loss_B: Tensor
    """Loss in nats; for text the mean over the tokens of the window."""
    correct_B: Tensor | None
    """1 or 0, or the share of correct tokens; None where the notion does not apply."""


@runtime_checkable
class Task(Protocol):
    """A model family over width, with its data.

    `Options` is a frozen dataclass whose fields are the task's options with their defaults; all are scalars and any may
    be an axis of the grid. Its fields may tell bounds, a unit and a meaning by `trainables.keys.key`, or `born` in their
    metadata: the value at which the option leaves a run's key as it is, so that a new option renames no run. An instance
    is made from one `Options`. Raise `VERSION` when the same spec gives other numbers.

    Optional: `evals`, a sequence of `trainables.evals.seam.Eval`: what is measured or shown of the model at steps.
    """

    VERSION: ClassVar[int]
    Options: ClassVar[type]
    UNIT: ClassVar[str]
    """What D counts: `images` or `tokens`."""

    def __init__(self, options: Any) -> None: ...

    @staticmethod
    def round_width(width: float) -> int:
        """The nearest width that the model can have."""
        ...

    def load(self, data: DataConfig) -> Dataset:
        """Reads and prepares the data. Raises TaskError naming the source or path and the remedy."""
        ...

    def build(self, width: int) -> nn.Module:
        """A freshly initialised model; called under the run's initialisation seed, and on the meta device for counts."""
        ...

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        """Loss and correctness of each example of a batch; the training loss is the mean of `loss_B`."""
        ...


BUILT_IN = {"mnist_cnn": "scalespec.trainables.tasks.mnist_cnn:MnistCnn", "gpt": "scalespec.trainables.tasks.gpt:Gpt"}


def task_class(name: str) -> type[Task]:
    """The class behind a built-in name or `package.module:ClassName`. Raises TaskError naming what is missing."""
    target = BUILT_IN.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        raise TaskError(
            f"task {name!r} is not built in ({', '.join(sorted(BUILT_IN))}); write yours as package.module:ClassName"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(
            f"task {name!r}: cannot import {module_name} ({error}); run where it can be imported"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise TaskError(f"task {name!r}: module {module_name} has no {class_name}")
    missing = [
        member
        for member in ("VERSION", "Options", "UNIT", "round_width", "load", "build", "losses")
        if not hasattr(found, member)
    ]
    if missing:
        raise TaskError(f"task {name!r} lacks {', '.join(missing)}; see the Task protocol in trainables/task.py")
    return found  # type: ignore[no-any-return]


def make_task(name: str, options: Mapping[str, Scalar]) -> Task:
    """The task of a run, from its options, checked. One that a run of an older version lacks is what it was born as.

    Raises TaskError for an unknown option or a value that cannot be.
    """
    cls = task_class(name)
    return cls(cls.Options(**checked_options(name, cls, {**born_options(cls), **options})))


def born_options(cls: type[Task]) -> dict[str, Scalar]:
    """The values at which options leave a run's key as it is, of those options whose definition tells one."""
    return {key.name: key.born for key in keys_of(cls.Options).values() if key.born is not dataclasses.MISSING}


def checked_options(name: str, cls: type[Task], options: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """All options of the task, given values over defaults, in the order of the class and in its types."""
    known = keys_of(cls.Options)
    for key in options:
        if key not in known:
            raise TaskError(f"task {name} has no option {key!r}; it has: {', '.join(known) or 'none'}")
    out: dict[str, Scalar] = {}
    for key, found in known.items():
        if key not in options:
            if found.default is dataclasses.MISSING:
                raise TaskError(f"task {name} needs the option {key!r}")
            out[key] = found.default
            continue
        try:
            out[key] = found.check(options[key])
        except ValueError as error:
            raise TaskError(f"task {name}: option {key} {error}") from error
    return out
