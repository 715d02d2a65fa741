"""What is read of the training loss as a run goes on: small objects, each with a state that is stored tensor by tensor.

`update` is called every step and reads nothing back from the device; `point` is called where curves have a point. So a resumed
run, which restores every meter, has the same curve as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from scalespec.trainables import effective_params
from scalespec.trainables.errors import DivergedError
from scalespec.trainables.group import Group

EMA = 0.98
"""Decay of the moving average of the training loss, corrected for its start (Adam's correction)."""

BOUND_FACTOR, BOUND_MARGIN, BOUND_COUNT = 4.0, 0.1, 20
"""Slow divergence: the averaged loss above min(4 · best, initial) and above best + 0.1 · initial, 20 logged points running.
The factor is that of Lightning's range test; the margin keeps it quiet where losses are tiny, as on MNIST."""

Point = dict[str, float]
"""Metric → value at one step."""


class Stateful(Protocol):
    """What a resume state holds: tensors under `meter.<name>.`."""

    name: str

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


class Meter(Stateful, Protocol):
    """Follows the loss. Its numbers are float64 tensors on the run's device, whatever the precision of the model."""

    def update(self, step: int, loss: Tensor) -> None:
        """Takes the loss of update number `step` (from 0)."""
        ...

    def shared(self) -> list[Tensor]:
        """Scalars that are averaged over the workers before `point` reads them."""
        ...

    def point(self, steps: int, means: Sequence[float]) -> Point:
        """What curves show after `steps` updates; `means` are those of `shared`."""
        ...


class LossAverage:
    """`train_loss`, the mean since the last point, and `train_loss_ema`."""

    name = "loss"

    def __init__(self, device: torch.device) -> None:
        self.average = torch.zeros((), dtype=torch.float64, device=device)
        """Uncorrected: it starts at 0."""
        self.sum = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0

    def update(self, step: int, loss: Tensor) -> None:
        self.average = EMA * self.average + (1 - EMA) * loss
        self.sum = self.sum + loss
        self.count += 1

    def shared(self) -> list[Tensor]:
        return [self.average, self.sum]

    def point(self, steps: int, means: Sequence[float]) -> Point:
        average, total = means
        point = {"train_loss": total / self.count, "train_loss_ema": average / (1 - EMA**steps)}
        self.sum, self.count = torch.zeros_like(self.sum), 0
        return point

    def state(self) -> dict[str, Tensor]:
        return {"average": self.average, "sum": self.sum, "count": torch.tensor(self.count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.average, self.sum = (state[name].to(self.sum.device) for name in ("average", "sum"))
        self.count = int(state["count"])


class EffectiveParams:
    """Kaplan's effective parameters of the averaged loss and averaged over batches, and the shares that were clamped.

    A batch is what one worker sees of it. See `effective_params`.
    """

    name = "n_eff"

    def __init__(self, loss: LossAverage) -> None:
        self._loss = loss
        """The average that the first reading is of; it is updated before this one."""
        self._values = [torch.zeros_like(loss.sum) for _ in range(3)]

    def update(self, step: int, loss: Tensor) -> None:
        batches, clamped_ema, clamped_batches = self._values
        corrected = self._loss.average / (1 - EMA ** (step + 1))
        self._values = [
            EMA * batches + (1 - EMA) * effective_params.effective_params(loss.double()),
            clamped_ema + (corrected <= effective_params.ENTROPY),
            clamped_batches + (loss <= effective_params.ENTROPY),
        ]

    def shared(self) -> list[Tensor]:
        return [self._loss.average, *self._values]

    def point(self, steps: int, means: Sequence[float]) -> Point:
        average, batches, clamped_ema, clamped_batches = means
        ema = torch.tensor(average / (1 - EMA**steps), dtype=torch.float64)
        return {
            "n_eff_ema": effective_params.effective_params(ema).item(),
            "n_eff_batches": batches / (1 - EMA**steps),
            "n_eff_clamped_ema": clamped_ema / steps,
            "n_eff_clamped_batches": clamped_batches / steps,
        }

    def state(self) -> dict[str, Tensor]:
        return dict(zip(("batches", "clamped_ema", "clamped_batches"), self._values, strict=True))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        device = self._loss.sum.device
        self._values = [state[name].to(device) for name in ("batches", "clamped_ema", "clamped_batches")]


class Divergence:
    """Judges each point of the loss; its state is the first loss, the best average and how long the bound is exceeded."""

    name = "divergence"

    def __init__(self) -> None:
        self.first, self.best, self.over = math.nan, math.inf, 0

    def check(self, steps: int, point: Mapping[str, float]) -> None:
        """Takes the point after `steps` updates. Raises DivergedError for what is not finite, or stays above the bound."""
        loss, ema, norm = point["train_loss"], point["train_loss_ema"], point["grad_norm"]
        if steps == 1:
            self.first = loss
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DivergedError("non_finite", steps, "gradient norm" if math.isfinite(loss) else "training loss")
        self.best = min(self.best, ema)
        bound = max(min(BOUND_FACTOR * self.best, self.first), self.best + BOUND_MARGIN * self.first)
        self.over = self.over + 1 if ema > bound else 0
        if self.over >= BOUND_COUNT:
            raise DivergedError("loss_bound", steps, f"averaged training loss {ema:.4g} above {bound:.4g}")

    def state(self) -> dict[str, Tensor]:
        values = {"first": self.first, "best": self.best, "over": float(self.over)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.first, self.best, self.over = float(state["first"]), float(state["best"]), int(state["over"])


class Rate:
    """Samples a second of training alone: what happens inside `paused` is not counted. It has no state: clocks do not resume."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._since: float | None = None
        """When training went on; None while it is paused."""
        self._seconds, self._samples = 0.0, 0
        self.rates: list[float] = []
        """Every point so far."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, time counts."""
        self._since = self._now()
        try:
            yield
        finally:
            self._hold()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count: validation, commits, whatever is not training."""
        was_running = self._since is not None
        self._hold()
        try:
            yield
        finally:
            self._since = self._now() if was_running else None

    def update(self, samples: int) -> None:
        """Takes the samples of one step."""
        self._samples += samples

    def point(self) -> Point:
        """`samples_per_s` since the last point; nothing where no time or no step lies between."""
        if self._since is not None:
            self._hold()
            self._since = self._now()
        seconds, samples = self._seconds, self._samples
        self._seconds, self._samples = 0.0, 0
        if not samples or seconds <= 0:
            return {}
        self.rates.append(samples / seconds)
        return {"samples_per_s": self.rates[-1]}

    def _hold(self) -> None:
        if self._since is not None:
            self._seconds += self._now() - self._since
            self._since = None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # queued kernels belong to the steps before
        return self._clock()


def read(meters: Sequence[Meter], steps: int, group: Group) -> Point:
    """The points of all meters after `steps` updates: one collective and one read from the device for all of them."""
    shared = [meter.shared() for meter in meters]
    means = group.mean(torch.stack([value for values in shared for value in values])).tolist()
    point: Point = {}
    for meter, values in zip(meters, shared, strict=True):
        own, means = means[: len(values)], means[len(values) :]
        point |= meter.point(steps, own)
    return point
