"""A task with its data and counts, and what can be said of a run before it is launched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalespec.trainables.rules import flops, scaling
from scalespec.trainables.skeleton import skeleton
from scalespec.trainables.spec import DataConfig, RunSpec
from scalespec.trainables.task import Dataset, Task, make_task


@dataclass(frozen=True)
class Prepared:
    """A task with its data and counts: what the runs of one lane can share."""

    task: Task
    data: Dataset
    _counts: dict[int, flops.Counts] = field(default_factory=dict, compare=False, repr=False)
    _matrices: dict[int, list[tuple[int, int]]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, name: str, options: Mapping[str, Any], data: DataConfig) -> Prepared:
        task = make_task(name, options)
        return cls(task, task.load(data))

    def know(self, width: int, counts: flops.Counts) -> None:
        """Takes the counts of a width from who has made them already: counting imports torch's compiler, two seconds."""
        self._counts.setdefault(width, counts)

    def counts(self, width: int) -> flops.Counts:
        """Parameters and FLOPs of an example at a width."""
        if width not in self._counts:
            self._counts[width] = flops.count(self.task, width, flops.example_of(self.data.train))
        return self._counts[width]

    def matrices(self, width: int) -> list[tuple[int, int]]:
        """Shapes of the model's weight matrices at a width."""
        if width not in self._matrices:
            self._matrices[width] = matrix_shapes(self.task, width)
        return self._matrices[width]


def matrix_shapes(task: Task, width: int) -> list[tuple[int, int]]:
    """Rows and columns of the weight matrices, kernel positions of a convolution as matrices of their own."""
    shapes = [tuple(p.shape) for p in skeleton(task, width).parameters() if p.ndim >= 2]
    return [(shape[0], shape[1]) for shape in shapes for _ in range(math.prod(shape[2:]))]


def check_model(spec: RunSpec, prepared: Prepared) -> None:
    """Builds the model of a run on the meta device and applies its rules, so that what cannot work is said before launch."""
    model, reference = (skeleton(prepared.task, width) for width in (spec.width, spec.optim.reference.width))
    scaling.apply_width_init(model, reference, spec.optim.width_rule)
    scaling.param_groups(model, reference, spec.optim.width_rule, scaling.scaled_optim(spec.optim))
    prepared.counts(spec.width)
