"""Evaluations at steps: what is measured or shown of a model beside its training loss.

A task names its own in an optional member `evals`. Each is a name, when, on how much, and a function; a new one is one file in
`trainables/evals/` and its name in the task's `evals`. The built-in validation is one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from scalespec.trainables.errors import TaskError
from scalespec.trainables.group import Group
from scalespec.trainables.io import Media, ValRows
from scalespec.trainables.spec import RunSpec
from scalespec.trainables.streams import seeded
from scalespec.trainables.task import Dataset, Task


@dataclass(frozen=True)
class Context:
    """What an evaluation may know beside task, model and data."""

    spec: RunSpec
    group: Group
    """The workers. Every one of them calls the function, with equal weights; the results of rank 0 count."""
    step: int
    examples: int | None
    """On how much: `Eval.examples`."""
    seed: int
    """Of a random stream of its own, a function of the run's seed, the evaluation's name and the step. Training has others."""
    beat: Callable[[], None] = lambda: None
    """To be called now and then by what takes long, so that the watchdog sees it alive."""


class Measured(NamedTuple):
    """What one evaluation found."""

    metrics: Mapping[str, float] = {}
    """Points of curves by name; those that are not finite are left out."""
    media: Sequence[Media] = ()
    rows: ValRows | None = None
    """Validation only: the loss of every example."""


@dataclass(frozen=True)
class Eval:
    """An evaluation: what, when, on how much."""

    name: str
    when: Literal["checkpoint", "last"] | int
    """At every step whose weights are kept, at the end of the run, or every so many steps."""
    function: Callable[[Any, nn.Module, Dataset, Context], Measured | Mapping[str, float]]
    """(task, model, data, context) → metrics. The model is in evaluation mode and no gradients are kept."""
    examples: int | None = None
    """None: all."""
    shows: bool = False
    """Whether it is there for its media, which `train.media: false` leaves out."""

    def __post_init__(self) -> None:
        if not (self.when in ("checkpoint", "last") or (isinstance(self.when, int) and self.when > 0)):
            raise TaskError(f"eval {self.name}: when is checkpoint, last or a number of steps, not {self.when!r}")

    def due(self, step: int, *, kept: bool, last: bool) -> bool:
        """Whether it is its turn after `step` updates: the weights of that step are kept, or it is the run's last."""
        if isinstance(self.when, int):
            return step > 0 and step % self.when == 0
        return kept if self.when == "checkpoint" else last


@dataclass
class Evaluations:
    """The evaluations of one run. What was measured at a step is measured once."""

    evals: Sequence[Eval]
    spec: RunSpec
    task: Task
    data: Dataset
    group: Group
    beat: Callable[[], None] = lambda: None
    _step: int = -1
    _found: dict[Eval, Measured] = field(default_factory=dict)

    @classmethod
    def of(
        cls, builtin: Sequence[Eval], spec: RunSpec, task: Task, data: Dataset, group: Group, beat: Any
    ) -> Evaluations:
        """The built-in ones and the task's. Raises TaskError where two have one name."""
        evals = [eval for eval in (*builtin, *getattr(task, "evals", ())) if spec.train.media or not eval.shows]
        names = [eval.name for eval in evals]
        if len(set(names)) < len(names):
            raise TaskError(f"task {spec.task}: two evals have one name ({', '.join(sorted(names))}); rename one")
        return cls(evals, spec, task, data, group, beat)

    def due(self, step: int, *, kept: bool = False, last: bool = False) -> list[Eval]:
        """Those whose turn it is after `step` updates."""
        return [eval for eval in self.evals if eval.due(step, kept=kept, last=last)]

    def measure(self, evals: Sequence[Eval], model: nn.Module, step: int) -> Measured:
        """What these evaluations find at `step`, together."""
        if step != self._step:
            self._step, self._found = step, {}
        found = [self._measured(eval, model, step) for eval in evals]
        metrics = {name: value for one in found for name, value in one.metrics.items()}
        rows = next((one.rows for one in found if one.rows is not None), None)
        return Measured(metrics, [medium for one in found for medium in one.media], rows)

    def _measured(self, eval: Eval, model: nn.Module, step: int) -> Measured:
        if eval not in self._found:
            seed = seeded(self.spec.seed, f"eval {eval.name}", step)
            context = Context(self.spec, self.group, step, eval.examples, seed, self.beat)
            model.eval()
            with torch.no_grad():
                found = eval.function(self.task, model, self.data, context)
            model.train()
            self._found[eval] = found if isinstance(found, Measured) else Measured(found)
        return self._found[eval]
