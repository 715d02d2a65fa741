"""The learning-rate multiplier over a run, and where runs of different length part from their common trunk.

Warmup is counted in samples, so that it is the same for every data fraction and batch size.
"""

from __future__ import annotations

import math

from scalespec.trainables.errors import TaskError
from scalespec.trainables.keys import choices_of
from scalespec.trainables.spec import ScheduleConfig

SCHEDULES = choices_of(ScheduleConfig, "name")


def multiplier(schedule: ScheduleConfig, step: int, steps: int, batch_samples: int) -> float:
    """Factor on the peak learning rate for update number `step` (from 0) of a run of `steps` updates.

    `batch_samples` is the number of samples (images or tokens) in one global batch. Before `branch_step` the value does
    not depend on `steps`. `step == steps` gives the limit that the schedule runs towards.

    * `wsd`: warmup, plateau, then 1 − √x over the last `cooldown` of the steps (Hägele et al. 2024,
      https://arxiv.org/abs/2405.18392).
    * `cosine`: warmup, then half a cosine from 1 to 0 (Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983).
    * `constant`: warmup, then 1.
    * `ramp`: linear growth from 0 to 1 over the whole run, to find the rate at which training destabilises; it is a
      warmup itself, so `warmup` has no effect on it.

    Raises TaskError for an unknown name, a cooldown outside [0, 1] or a negative warmup.
    """
    _check(schedule)
    if schedule.name == "ramp":
        return min(1.0, (step + 1) / steps)
    warmup = min(1.0, (step + 1) * batch_samples / schedule.warmup) if schedule.warmup else 1.0
    if schedule.name == "wsd":
        start = _cooldown_start(schedule, steps)
        return warmup if step < start else warmup * (1 - math.sqrt(_progress(step, start, steps)))
    if schedule.name == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * _progress(step, schedule.warmup / batch_samples, steps)))
    return warmup


def branch_step(schedule: ScheduleConfig, steps: int) -> int | None:
    """Number of updates that a run of `steps` shares with longer runs; None where the horizon matters from the start."""
    _check(schedule)
    if schedule.name == "wsd":
        return _cooldown_start(schedule, steps)
    return steps if schedule.name == "constant" else None


def _cooldown_start(schedule: ScheduleConfig, steps: int) -> int:
    return round((1 - schedule.cooldown) * steps)


def _progress(step: int, start: float, steps: int) -> float:
    """Share of the way from `start` to `steps`, clamped to [0, 1]."""
    return min(1.0, max(0.0, (step - start) / (steps - start))) if steps > start else 0.0


def _check(schedule: ScheduleConfig) -> None:
    if schedule.name not in SCHEDULES:
        raise TaskError(f"schedule.name: {schedule.name!r} is not one of {', '.join(SCHEDULES)}")
    if not 0 <= schedule.cooldown <= 1:
        raise TaskError(f"schedule.cooldown: {schedule.cooldown} is not a share of the steps between 0 and 1")
    if schedule.warmup < 0:
        raise TaskError(f"schedule.warmup: {schedule.warmup} samples is negative; 0 means no warmup")
