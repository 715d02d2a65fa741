"""A run's model in training: steps, points of its curves, evaluations, kept weights and resume states, into a run's folder.

Nothing here depends on how training got to a step. Data order, dropout and schedule are functions of (seed, step), and the
meters are part of the state; so a resumed run, and a cooldown branched from a trunk, equal the run trained alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping

import torch

from scalespec.trainables import effective_params
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.evals.seam import Evaluations
from scalespec.trainables.evals.validation import VALIDATION
from scalespec.trainables.family import is_logged
from scalespec.trainables.group import Group
from scalespec.trainables.io import State
from scalespec.trainables.learner import Learner
from scalespec.trainables.meters import Divergence, EffectiveParams, LossAverage, Meter, Rate, Stateful, read
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.rules import schedules
from scalespec.trainables.spec import RunSpec
from scalespec.trainables.streams import Batches


class Training:
    """One process's part in the training of one model."""

    def __init__(
        self,
        spec: RunSpec,
        prepared: Prepared,
        steps: int,
        group: Group | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`steps`: those of the whole run, which its schedule runs towards. `beat` is called every step."""
        self.spec, self.prepared, self.steps = spec, prepared, steps
        self.group, self.beat = group or Group.current(), beat
        data, batch = prepared.data, spec.optim.batch_size
        if batch % self.group.world:
            raise ValueError(f"optim.batch_size {batch} is not divisible by {self.group.world} workers")
        self.batches = Batches(spec.seed, data.train_examples, spec.data_fraction, spec.train.epochs, batch)
        self.batch_samples = batch * data.samples_per_example
        self.evaluations = Evaluations.of([VALIDATION], spec, prepared.task, data, self.group, beat)
        self.rate = Rate(self.group.device)
        self.began, self.seconds_before = time.monotonic(), 0.0
        self.reset()

    def reset(self) -> None:
        """The model, optimizer and meters at step 0."""
        self.step = 0
        self.learner = Learner(self.spec, self.prepared, self.group)
        self.loss = LossAverage(self.group.device)
        self.meters: list[Meter] = [self.loss]
        if effective_params.applies(self.prepared.task.UNIT, self.spec.data.tokenizer):
            self.meters.append(EffectiveParams(self.loss))
        self.divergence = Divergence()
        self.norm = torch.tensor(math.nan)

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything that the next step and the next point depend on."""
        tensors = dict(self.learner.state())
        for meter in self._stateful():
            tensors |= {f"meter.{meter.name}.{name}": value for name, value in meter.state().items()}
        tensors = {name: value.cpu().clone() for name, value in tensors.items()}
        return State(self.step, tensors, {"seconds": self.elapsed()})

    def restore(self, state: State) -> None:
        """Puts the training at `state`."""
        self.learner.restore(state.tensors)
        for meter in self._stateful():
            prefix = f"meter.{meter.name}."
            own = {name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)}
            meter.restore(own)
        self.step = state.step

    def _stateful(self) -> list[Stateful]:
        return [*self.meters, self.divergence]

    def load(self, io: RunFolder, at_most: int | None = None) -> State | None:
        """The newest valid state in a folder, the same on every worker: rank 0 chooses, the others read that step."""
        if self.group.rank == 0:
            state = io.load_latest(at_most)
            self.group.agreed(-1 if state is None else state.step)
            return state
        step = self.group.agreed(0)
        return None if step < 0 else io.load_latest(step)

    # -- steps --------------------------------------------------------------------------------------------------------

    def advance(self, until: int, io: RunFolder, kept: Collection[int] = ()) -> None:
        """Trains from `self.step` to `until`, recording in `io` and keeping the weights of the steps in `kept`.

        Raises DivergedError.
        """
        saved = time.monotonic()
        with self.rate.running():
            while self.step < until:
                self._update()
                if is_logged(self.step):
                    self.log(io)
                if self.step in kept or self.evaluations.due(self.step):
                    with self.rate.paused():
                        self.look(io, kept=self.step in kept)
                if time.monotonic() - saved > self.spec.train.resume_every_s and self.step < until:
                    with self.rate.paused():
                        self.save_state(io)
                    saved = time.monotonic()

    def _update(self) -> None:
        batch, scale = self.batches.of(self.step), self.multiplier(self.step)
        loss, self.norm = self.learner.update(self.step, batch, scale)
        for meter in self.meters:
            meter.update(self.step, loss)
        self.rate.update(self.batch_samples)
        self.step += 1
        self.beat()

    def multiplier(self, step: int) -> float:
        """Factor of the schedule on the peak learning rate for update number `step`."""
        return schedules.multiplier(self.spec.schedule, step, self.steps, self.batch_samples)

    def log(self, io: RunFolder) -> None:
        """Logs the point after `self.step` updates and stops a run that has diverged."""
        point = self.rate.point() | read(self.meters, self.step, self.group)
        point |= {"lr": self.learner.optim.lr * self.multiplier(self.step - 1), "grad_norm": float(self.norm)}
        self.record(io, point)
        self.divergence.check(self.step, point)

    def look(self, io: RunFolder, *, kept: bool) -> None:
        """Makes the evaluations whose turn it is and, where this step is `kept`, commits its weights with what they found."""
        model, step = self.learner.model, self.step
        found = self.evaluations.measure(self.evaluations.due(step, kept=kept), model, step)
        self.record(io, found.metrics)
        if self.group.rank:
            return
        if found.media:
            io.save_media(step, found.media)
        if kept:
            at_checkpoints = [eval for eval in self.evaluations.evals if eval.when == "checkpoint"]
            metrics = finite(self.evaluations.measure(at_checkpoints, model, step).metrics)
            weights = {name: value.detach().cpu() for name, value in self.learner.weights().items()}
            io.save_weights(step, self.samples, self.flops, weights, metrics)

    def save_state(self, io: RunFolder, *, keep: bool = False) -> None:
        """Commits a resume state; `keep`: as a branch point of a trunk."""
        if self.group.rank == 0:
            io.save_state(self.state(), keep=keep)

    def record(self, io: RunFolder, metrics: Mapping[str, float]) -> None:
        """Points of curves at this step; those that are not finite are left out."""
        if self.group.rank == 0 and metrics:
            io.log(self.step, self.samples, self.flops, finite(metrics))

    @property
    def samples(self) -> int:
        """D so far: images, or predicted tokens."""
        return self.step * self.batch_samples

    @property
    def flops(self) -> float:
        """C so far."""
        return float(self.step * self.spec.optim.batch_size * self.prepared.counts(self.spec.width).flops_train)

    def elapsed(self) -> float:
        """Seconds since `began`, and those before the state that this process went on from."""
        return self.seconds_before + time.monotonic() - self.began


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
