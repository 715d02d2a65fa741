"""How long a run's steps, validation and commits take on this machine, from a few real ones."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.errors import DivergedError
from scalespec.trainables.evals import validation
from scalespec.trainables.family import run_schedule
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.group import Group
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.spec import RunSpec, ScheduleConfig
from scalespec.trainables.training import Training


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
    steps = run_schedule(spec, prepared.data.train_examples, shares_trunk=False).steps
    io = RunFolder(LocalFiles(folder), "probe")
    Training(spec, prepared, steps)
    began = time.perf_counter()
    training = Training(spec, prepared, steps)
    built = time.perf_counter() - began
    _advance(training, min(3, steps), io)
    times: list[float] = []
    while training.step < steps and (len(times) < 8 or sum(times) < seconds):
        began = time.perf_counter()
        _advance(training, training.step + 1, io)
        times.append(time.perf_counter() - began)
    data = prepared.data
    sample = replace(data, val=tuple(array[: validation.EVAL_BATCH] for array in data.val))
    began = time.perf_counter()
    validation.evaluate(prepared.task, training.learner.model, sample, Group.current(), spec.train.precision)
    evaluated = (time.perf_counter() - began) / sample.val_examples
    weights, state = training.learner.weights(), training.state().tensors
    began = time.perf_counter()
    io.save_weights(training.step, training.samples, training.flops, weights, {})
    committed = time.perf_counter() - began
    return Speed(
        statistics.median(times) if times else built, evaluated, committed, built, _bytes(weights), _bytes(state)
    )


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _advance(training: Training, until: int, io: RunFolder) -> None:
    """Steps that may diverge: they take their time all the same, and divergence is a result of the study, not of its plan."""
    while training.step < until:
        with contextlib.suppress(DivergedError):
            training.advance(until, io)
