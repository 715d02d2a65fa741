"""Which steps a run has, and where it logs, keeps weights and leaves its family's trunk. Pure functions of the spec."""

from __future__ import annotations

from fractions import Fraction

from scalespec.trainables.rules import schedules
from scalespec.trainables.spec import RunSpec

LOG_PER_OCTAVE = 32
"""Logged steps in each doubling of the step count, beyond the first 64: a log axis needs no more."""


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
