"""How long a run's steps, validation and commits take on this machine, from a few real ones."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass, replace

import torch

from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.evals import validation
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.group import Group
from scalespec.trainables.loop import DivergedError, Prepared, Trainer
from scalespec.trainables.spec import RunSpec, ScheduleConfig


@dataclass(frozen=True)
class Speed:
    """Costs of one kind of run (task, width, batch, precision) in one worker."""

    step_s: float
    """Seconds of an optimizer step, logging included."""
    eval_example_s: float
    """Seconds to validate one example."""
    commit_s: float
    """Seconds to commit analysis weights or a state."""
    build_s: float
    """Seconds to build the model and optimizer and to begin."""
    weights_bytes: int
    state_bytes: int


def measure(spec: RunSpec, prepared: Prepared, *, seconds: float = 1.0, threads: int = 1) -> Speed:
    """Times the middle of a run: at least 8 steps and about `seconds`, after a warm-up of 3; medians."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(spec, prepared, folder, seconds)
    finally:
        torch.set_num_threads(before)


def _measure(spec: RunSpec, prepared: Prepared, folder: str, seconds: float) -> Speed:
    # no rule of a schedule may refuse a run that is cut short here
    spec = replace(spec, schedule=ScheduleConfig("constant"), train=replace(spec.train, resume_every_s=1e9))
    Trainer(spec, prepared, RunFolder(LocalFiles(folder), "warm"))
    began = time.perf_counter()
    trainer = Trainer(spec, prepared, RunFolder(LocalFiles(folder), "probe"))
    built = time.perf_counter() - began
    _advance(trainer, min(3, trainer.steps))
    times: list[float] = []
    while trainer.step < trainer.steps and (len(times) < 8 or sum(times) < seconds):
        began = time.perf_counter()
        _advance(trainer, trainer.step + 1)
        times.append(time.perf_counter() - began)
    data = prepared.data
    sample = replace(data, val=tuple(array[: validation.EVAL_BATCH] for array in data.val))
    began = time.perf_counter()
    validation.evaluate(prepared.task, trainer.model, sample, Group.current(), spec.train.precision)
    evaluated = (time.perf_counter() - began) / sample.val_examples
    began = time.perf_counter()
    trainer.io.save_weights(trainer.step, trainer.samples, trainer.flops, trainer.weights(), {})
    committed = time.perf_counter() - began
    weights = sum(value.numel() * value.element_size() for value in trainer.weights().values())
    state = sum(value.numel() * value.element_size() for value in trainer.state().tensors.values())
    return Speed(statistics.median(times) if times else built, evaluated, committed, built, weights, state)


def _advance(trainer: Trainer, until: int) -> None:
    """Steps that may diverge: they take their time all the same, and divergence is a result of the study, not of its plan."""
    while trainer.step < until:
        with contextlib.suppress(DivergedError):
            trainer.advance(until)
