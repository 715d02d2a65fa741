"""Which steps a run has, and where it logs, keeps weights and leaves its family's trunk. Pure functions of the spec.

Plan, jobs, trainer and spectra read one `FamilySchedule`, so that what is estimated is what is trained.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from scalespec.trainables.rules import schedules
from scalespec.trainables.spec import RunSpec

LOG_PER_OCTAVE = 32
"""Logged steps in each doubling of the step count, beyond the first 64: a log axis needs no more."""


@dataclass(frozen=True)
class RunSchedule:
    """The steps of one run."""

    run_key: str
    steps: int
    """Optimizer steps, from 0."""
    branch: int | None
    """The step at which the run leaves the trunk of its family; None where it trains alone."""
    kept: tuple[int, ...]
    """Steps whose analysis weights are kept, 0 and `steps` among them."""

    def on_trunk(self, step: int) -> bool:
        """Whether the weights of this step are those of the family's trunk."""
        return self.branch is not None and step <= self.branch

    @property
    def kept_of_trunk(self) -> tuple[int, ...]:
        """Kept steps whose weights the run takes from the trunk."""
        return tuple(step for step in self.kept if self.on_trunk(step))


@dataclass(frozen=True)
class FamilySchedule:
    """The runs of a family, which differ in their data fraction only, from the smallest fraction up."""

    runs: tuple[RunSchedule, ...]
    shares_trunk: bool
    """Whether a trunk is trained once and every run branches from it."""

    @property
    def trunk_kept(self) -> tuple[int, ...]:
        """Steps at which some run wants the trunk's weights."""
        return tuple(sorted({step for run in self.runs for step in run.kept_of_trunk}))

    def executed(self, keys: Collection[str]) -> dict[str, int]:
        """Marginal steps of the runs named, trained in order: each extends the trunk and adds its own cooldown."""
        out: dict[str, int] = {}
        trunk = 0
        for run in self.runs:
            if run.run_key in keys:
                branch = run.branch or 0
                out[run.run_key] = max(0, branch - trunk) + run.steps - branch
                trunk = max(trunk, branch)
        return out


def family_schedule(family: Sequence[RunSpec], train_examples: int) -> FamilySchedule:
    """The schedule of all runs of one family. They share a trunk if there are several, none forbids it and it has a length."""
    ordered = sorted(family, key=lambda spec: spec.data_fraction)
    shared = len(ordered) > 1 and all(spec.train.reuse_trunk and branch_of(spec, 1) is not None for spec in ordered)
    return FamilySchedule(tuple(run_schedule(spec, train_examples, shared) for spec in ordered), shared)


def run_schedule(spec: RunSpec, train_examples: int, shares_trunk: bool) -> RunSchedule:
    """The schedule of one run, as a branch of its family's trunk or alone."""
    steps = steps_of(train_examples, spec.data_fraction, spec.train.epochs, spec.optim.batch_size)
    branch = branch_of(spec, steps) if shares_trunk else None
    return RunSchedule(spec.run_key, steps, branch, tuple(checkpoint_steps(steps, spec.train.checkpoints)))


def steps_of(train_examples: int, fraction: Fraction, epochs: int, batch_size: int) -> int:
    """Optimizer steps of a run: whole batches only."""
    return int(fraction * train_examples) * epochs // batch_size


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """At most `count` log-spaced steps, 0 and `steps` among them.

    The inner ones are powers of two (of √2, ⁴√2 … where there are too few), the largest below three quarters of the run: a
    ladder that does not depend on the length of the run, so that the runs of a family share the checkpoints of their trunk.
    """
    inner: list[int] = []
    for density in (1, 2, 4, 8):
        ladder = (round(2 ** (j / density)) for j in range(density * max(1, steps.bit_length()) + 1))
        inner = sorted({s for s in ladder if 1 <= s <= 0.75 * steps})
        if len(inner) >= count - 2:
            break
    return sorted({0, *inner[max(0, len(inner) - max(0, count - 2)) :], steps})


def is_logged(step: int) -> bool:
    """Whether curves have a point here; the same for every run length."""
    stride = 1 << max(0, step.bit_length() - LOG_PER_OCTAVE.bit_length())
    return step % stride == 0


def branch_of(spec: RunSpec, steps: int) -> int | None:
    """The step up to which this run equals its family's trunk; None where it has none of its own making to share."""
    if spec.train.epochs != 1:
        return None  # a second epoch starts earlier in a smaller fraction, so nothing is shared
    return schedules.branch_step(spec.schedule, steps)
