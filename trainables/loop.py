"""Training one run, or extending a family's trunk: the same steps under Ray Train, torchrun or plain Python.

Nothing in a step depends on how the run got there. Data order, dropout and schedule are functions of (seed, step), and the
accumulators are part of the state; so a resumed run, and a cooldown branched from a trunk, equal the run trained alone.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalespec.trainables import effective_params
from scalespec.trainables.checkpoints import DamagedError, RunFolder
from scalespec.trainables.errors import DataChangedError
from scalespec.trainables.evals import validation
from scalespec.trainables.evals.validation import autocast, to_device
from scalespec.trainables.family import branch_of, checkpoint_steps, is_logged, steps_of
from scalespec.trainables.group import Group, device_name
from scalespec.trainables.io import State, ValRows
from scalespec.trainables.rules import flops, scaling, schedules
from scalespec.trainables.rules.optimizer import optimizer, step
from scalespec.trainables.spec import DataConfig, RunSpec
from scalespec.trainables.streams import order, seeded
from scalespec.trainables.task import Dataset, Task, make_task

LOOP_VERSION = 1
"""Raise by hand when the same spec gives other numbers; it is part of every run's key."""

EMA = 0.98
"""Decay of the moving average of the training loss, corrected for its start (Adam's correction)."""

BOUND_FACTOR, BOUND_MARGIN, BOUND_COUNT = 4.0, 0.1, 20
"""Slow divergence: the averaged loss above min(4 · best, initial) and above best + 0.1 · initial, 20 logged points running.
The factor is that of Lightning's range test; the margin keeps it quiet where losses are tiny, as on MNIST."""


class DivergedError(RuntimeError):
    """The run has no finite result; `reason` is `non_finite` or `loss_bound`."""

    def __init__(self, reason: str, step: int, detail: str) -> None:
        super().__init__(f"{reason}: {detail} at step {step}")
        self.reason, self.step = reason, step


@dataclass(frozen=True)
class Prepared:
    """A task with its data and counts: what the runs of one pack can share."""

    task: Task
    data: Dataset
    _counts: dict[int, flops.Counts] = field(default_factory=dict, compare=False, repr=False)
    _matrices: dict[int, list[tuple[int, int]]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, name: str, options: Mapping[str, Any], data: DataConfig) -> Prepared:
        task = make_task(name, options)
        return cls(task, task.load(data))

    def know(self, width: int, counts: flops.Counts) -> None:
        """Takes the counts of a width from who has made them already."""
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
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in task.build(width).parameters() if p.ndim >= 2]
    return [(shape[0], shape[1]) for shape in shapes for _ in range(math.prod(shape[2:]))]


def check_model(spec: RunSpec, prepared: Prepared) -> None:
    """Builds the model of a run on the meta device and applies its rules, so that what cannot work is said before launch."""
    with torch.device("meta"):
        model, reference = prepared.task.build(spec.width), prepared.task.build(spec.optim.reference.width)
    scaling.apply_width_init(model, reference, spec.optim.width_rule)
    scaling.param_groups(model, reference, spec.optim.width_rule, scaling.scaled_optim(spec.optim))
    prepared.counts(spec.width)


class Trainer:
    """One run in one process of its group."""

    def __init__(
        self,
        spec: RunSpec,
        prepared: Prepared,
        io: RunFolder,
        trunk: RunFolder | None = None,
        family_steps: Sequence[int] = (),
        group: Group | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`family_steps`: all steps at which some run of the family wants the trunk's weights. `beat` is called every step."""
        self.spec, self.task, self.data = spec, prepared.task, prepared.data
        if self.data.identity != spec.data_identity:
            raise DataChangedError(
                f"data_changed: {spec.data.source} gives sha256 {self.data.identity[:12]}… here, planned with {spec.data_identity[:12]}…"
            )
        self.io, self.trunk, self.group, self.beat = io, trunk, group or Group.current(), beat
        self.batch_size = spec.optim.batch_size
        if self.batch_size % self.group.world:
            raise ValueError(f"optim.batch_size {self.batch_size} is not divisible by {self.group.world} workers")
        self.steps = steps_of(self.data.train_examples, spec.data_fraction, spec.train.epochs, self.batch_size)
        self.branch = branch_of(spec, self.steps) if trunk is not None else None
        self.checkpoints = checkpoint_steps(self.steps, spec.train.checkpoints)
        self.family_steps = sorted({*family_steps, *self.checkpoints})
        self.counts = prepared.counts(spec.width)
        self.optim = scaling.scaled_optim(spec.optim)
        self.effective = effective_params.applies(self.task.UNIT, spec.data.tokenizer)
        self.permutation = order(spec.seed, self.data.train_examples)
        self.throughput: list[float] = []
        self.began = self.mark = time.monotonic()
        self.norm = torch.tensor(math.nan)
        self._val: tuple[int, ValRows] | None = None
        self._fresh()

    # -- state --------------------------------------------------------------------------------------------------------

    def _fresh(self) -> None:
        """The model, optimizer and accumulators at step 0."""
        spec, device = self.spec, self.group.device
        torch.manual_seed(seeded(spec.seed, "init"))
        self.model = self.task.build(spec.width)
        with torch.device("meta"):
            reference = self.task.build(spec.optim.reference.width)
        scaling.apply_width_init(self.model, reference, spec.optim.width_rule)
        self.model.to(device)
        groups = scaling.param_groups(self.model, reference, spec.optim.width_rule, self.optim)
        self.optimizer = optimizer(spec.optim.name, groups, self.optim)
        self.parameters = dict(self.model.named_parameters())
        self.wrapped: nn.Module = self.model
        if self.group.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.wrapped = nn.parallel.DistributedDataParallel(self.model, device_ids=ids, gradient_as_bucket_view=True)
        self.step, self.over_bound, self.seconds = 0, 0, 0.0
        # average (uncorrected), sum and count since the last logged point, first loss, best average; then of the effective
        # parameters: the average over batches (uncorrected), and how many averages and batches were clamped
        start = [0.0, 0.0, 0.0, math.nan, math.inf, 0.0, 0.0, 0.0]
        self.acc = torch.tensor(start, dtype=torch.float64, device=device)

    def state(self) -> State:
        """Everything that the next step depends on. Optimizer slots are named after their parameters."""
        tensors: dict[str, Tensor] = {f"model.{k}": v.detach() for k, v in self.weights().items()}
        for name, parameter in self.parameters.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optim.{name}.{slot}"] = value
        tensors["acc"] = self.acc
        tensors = {k: v.cpu().clone() for k, v in tensors.items()}
        return State(self.step, tensors, {"over_bound": self.over_bound, "seconds": self._elapsed()})

    def restore(self, state: State) -> None:
        """Puts the run at `state`."""
        own = self.weights()
        slots: dict[str, dict[str, Tensor]] = {}
        with torch.no_grad():
            for key, value in state.tensors.items():
                kind, _, rest = key.partition(".")
                if kind == "model":
                    own[rest].copy_(value)
                elif kind == "optim":
                    name, _, slot = rest.rpartition(".")
                    slots.setdefault(name, {})[slot] = value
        self.optimizer.state.clear()
        for name, values in slots.items():
            parameter = self.parameters[name]
            # Adam's `step` stays on the CPU unless the fused kernel keeps it beside the weights
            self.optimizer.state[parameter] = {
                slot: value.to(parameter.device) if value.ndim or _fused(self.optimizer) else value
                for slot, value in values.items()
            }
        self.acc = state.tensors["acc"].to(self.group.device)
        self.step, self.over_bound = state.step, int(state.meta["over_bound"])

    def weights(self) -> dict[str, Tensor]:
        """Parameters, a tied one once, and buffers, by name."""
        return {**self.parameters, **dict(self.model.named_buffers())}

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Trains to the end, from wherever the folders say, and commits the result. Divergence is a result."""
        self.began = time.monotonic()
        status, error, val = "done", None, None
        try:
            self._to_start()
            self.advance(self.steps, self.io, self.checkpoints)
            if not is_logged(self.steps):
                self._log(self.io)
            val = self._evaluate()
            if not np.isfinite(val.loss).all():
                raise DivergedError("non_finite", self.step, "validation loss")
        except DivergedError as diverged:
            status, error, val = "diverged", str(diverged), None
        result = self._result(status, error, val)
        if self.group.rank == 0:
            self.io.finish(result, val)
        return result

    def _to_start(self) -> None:
        own = self._load(self.io)
        if own is not None:
            self.restore(own)
            self.seconds = float(own.meta["seconds"])
        elif self.branch is not None:
            self._along_trunk(self.branch)
        if self.step == 0 and own is None:
            self._checkpoint(self.io, self.checkpoints)

    def _along_trunk(self, branch: int) -> None:
        """Brings the family's trunk to `branch`, training what is missing, and copies its record into this run."""
        assert self.trunk is not None
        wanted = [s for s in self.checkpoints if s <= branch]
        for _ in range(len(wanted) + 1):
            have = self.trunk.checkpoint_steps() if self.group.rank == 0 else wanted
            lacking = self.group.agreed(min((s for s in wanted if s not in have), default=branch + 1))
            start = self._load(self.trunk, min(branch, lacking))
            if start is not None:
                self.restore(start)
            elif self.step:
                self._fresh()
            if start is None or self.step == lacking:
                self._checkpoint(self.trunk, self.family_steps)
            try:
                self.advance(branch, self.trunk, [s for s in self.family_steps if s <= branch])
            except DivergedError:
                if self.group.rank == 0:
                    self.io.adopt(self.trunk, self.step, [s for s in wanted if s in self.trunk.checkpoint_steps()])
                raise
            damaged = 0
            if self.group.rank == 0:
                if start is None or start.step != branch:
                    self.trunk.save_state(self.state(), keep=True)
                try:
                    self.io.adopt(self.trunk, branch, wanted)
                except DamagedError:
                    damaged = 1
            if not self.group.agreed(damaged):
                return

    def _load(self, io: RunFolder, at_most: int | None = None) -> State | None:
        """The newest valid state, the same on every worker: rank 0 chooses, the others read that step."""
        if self.group.rank == 0:
            state = io.load_latest(at_most)
            self.group.agreed(-1 if state is None else state.step)
            return state
        step = self.group.agreed(0)
        return None if step < 0 else io.load_latest(step)

    def advance(self, until: int, io: RunFolder | None = None, checkpoints: Sequence[int] = ()) -> None:
        """Trains from `self.step` to `until`, recording in `io` (the run's own folder unless given)."""
        io = io or self.io
        spec, rank = self.spec, self.group.rank
        share = self.batch_size // self.group.world
        limit = math.inf if spec.optim.grad_clip is None else spec.optim.grad_clip
        saved = time.monotonic()
        self.mark = time.perf_counter()
        self.wrapped.train()
        while self.step < until:
            scale = self._schedule(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            at = self._indices(self.step)[rank * share : (rank + 1) * share]
            batch = to_device(self.data.train, at, self.group.device)
            _seed(seeded(spec.seed, "dropout", self.step, rank), self.group.device)
            with autocast(self.group.device, spec.train.precision):
                loss = self.task.losses(self.wrapped, batch).loss_B.mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self.norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
            step(self.optimizer)
            self.optimizer.zero_grad(set_to_none=True)
            self._accumulate(loss.detach())
            self.step += 1
            self.beat()
            if is_logged(self.step):
                self._log(io)
            if self.step in checkpoints:
                self._checkpoint(io, checkpoints)
                self.mark = time.perf_counter()
            if time.monotonic() - saved > spec.train.resume_every_s and self.step < until:
                if rank == 0:
                    io.save_state(self.state())
                saved, self.mark = time.monotonic(), time.perf_counter()

    def _schedule(self, step: int) -> float:
        return schedules.multiplier(
            self.spec.schedule, step, self.steps, self.batch_size * self.data.samples_per_example
        )

    def _indices(self, step: int) -> np.ndarray:
        """Training examples of a step: a prefix of the seed's permutation; later epochs shuffle that prefix anew."""
        first = step * self.batch_size
        if self.spec.train.epochs == 1:
            return self.permutation[first : first + self.batch_size]
        prefix = int(self.spec.data_fraction * self.data.train_examples)
        positions = np.arange(first, first + self.batch_size)
        out = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(positions // prefix):
            rows = positions // prefix == epoch
            out[rows] = self._epoch_order(int(epoch), prefix)[positions[rows] % prefix]
        return out

    def _epoch_order(self, epoch: int, prefix: int) -> np.ndarray:
        cached = getattr(self, "_epoch_cache", None)
        if cached is None or cached[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(seeded(self.spec.seed, "order", epoch)))
            shuffled = self.permutation[:prefix] if epoch == 0 else rng.permutation(self.permutation[:prefix])
            self._epoch_cache = cached = (epoch, shuffled)
        return cached[1]  # type: ignore[no-any-return]

    # -- measurements -------------------------------------------------------------------------------------------------

    def _accumulate(self, loss: Tensor) -> None:
        acc = self.acc
        if self.step == 0:
            acc[3] = loss
        acc[0] = EMA * acc[0] + (1 - EMA) * loss
        acc[1] += loss
        acc[2] += 1
        if self.effective:
            average = acc[0] / (1 - EMA ** (self.step + 1))
            acc[5] = EMA * acc[5] + (1 - EMA) * effective_params.effective_params(loss.double())
            acc[6] += average <= effective_params.ENTROPY
            acc[7] += loss <= effective_params.ENTROPY

    def _log(self, io: RunFolder) -> None:
        """Logs the point after `self.step` updates and stops a run that has diverged."""
        if self.group.device.type == "cuda":
            torch.cuda.synchronize(self.group.device)
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        ema, loss, first = self.group.mean(self.acc[[0, 1, 3]].clone()).tolist()
        count = int(self.acc[2].item())
        ema, loss = ema / (1 - EMA**self.step), loss / count
        rate = count * self.batch_size * self.data.samples_per_example / seconds
        norm = self.norm.item()
        point = {
            "train_loss": loss,
            "train_loss_ema": ema,
            "lr": self.optim.lr * self._schedule(self.step - 1),
            "grad_norm": norm,
        }
        point["samples_per_s"] = rate
        point |= self._effective_params(ema)
        self._record(io, {name: value for name, value in point.items() if math.isfinite(value)})
        self.throughput.append(rate)
        self.acc[1:3] = 0.0
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DivergedError("non_finite", self.step, "gradient norm" if math.isfinite(loss) else "training loss")
        best = min(self.acc[4].item(), ema)
        self.acc[4] = best
        bound = max(min(BOUND_FACTOR * best, first), best + BOUND_MARGIN * first)
        self.over_bound = self.over_bound + 1 if ema > bound else 0
        if self.over_bound >= BOUND_COUNT:
            raise DivergedError("loss_bound", self.step, f"averaged training loss {ema:.4g} above {bound:.4g}")

    def _effective_params(self, ema: float) -> dict[str, float]:
        """Both readings and their clamped shares so far; a batch is what one worker sees of it."""
        if not self.effective:
            return {}
        batches, clamped_ema, clamped_batches = self.group.mean(self.acc[5:8].clone()).tolist()
        return {
            "n_eff_ema": effective_params.effective_params(torch.tensor(ema, dtype=torch.float64)).item(),
            "n_eff_batches": batches / (1 - EMA**self.step),
            "n_eff_clamped_ema": clamped_ema / self.step,
            "n_eff_clamped_batches": clamped_batches / self.step,
        }

    def _record(self, io: RunFolder, metrics: Mapping[str, float]) -> None:
        if self.group.rank == 0:
            io.log(self.step, self.samples, self.flops, metrics)

    @property
    def samples(self) -> int:
        """D so far: images, or predicted tokens."""
        return self.step * self.batch_size * self.data.samples_per_example

    @property
    def flops(self) -> float:
        """C so far."""
        return float(self.step * self.batch_size * self.counts.flops_train)

    def _checkpoint(self, io: RunFolder, steps: Sequence[int]) -> None:
        """Validates and keeps the analysis weights, where this step is one of `steps`."""
        if self.step not in steps:
            return
        val = self._evaluate()
        metrics = {"val_loss": float(val.loss.mean())}
        if val.correct is not None:
            metrics["val_accuracy"] = float(val.correct.mean())
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._record(io, metrics)
        if self.group.rank == 0:
            weights = {name: value.detach().cpu() for name, value in self.weights().items()}
            io.save_weights(self.step, self.samples, self.flops, weights, metrics)

    def _evaluate(self) -> ValRows:
        """The validation rows of this step, computed once."""
        if self._val is None or self._val[0] != self.step:
            rows = validation.evaluate(
                self.task, self.model, self.data, self.group, self.spec.train.precision, self.beat
            )
            self._val = (self.step, rows)
        return self._val[1]

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _result(self, status: str, error: str | None, val: ValRows | None) -> dict[str, Any]:
        spec, counts, samples = self.spec, self.counts, self.samples
        rates = [rate for rate in self.throughput if math.isfinite(rate)]
        rate = statistics.median(rates) if rates else None
        device = device_name(self.group.device)
        peak = flops.peak_flops(device, spec.train.precision)
        per_sample = counts.flops_train / self.data.samples_per_example
        ema = self.group.mean(self.acc[:1].clone()).item() / (1 - EMA ** max(1, self.step))
        prefix = int(spec.data_fraction * self.data.train_examples)
        examples = self.step * self.batch_size
        return {
            "status": status,
            "error": error,
            "steps": self.step,
            "samples": samples,
            "unique_samples": min(examples, prefix) * self.data.samples_per_example,
            "params_total": counts.params_total,
            "params_embedding": counts.params_embedding,
            "params_matmul": counts.params_matmul,
            "flops_train": self.flops,
            "flops_6nd": 6.0 * counts.params_matmul * samples,
            "flops_matmul": float(examples * counts.flops_matmul),
            "flops_causal": float(examples * counts.flops_causal),
            "flops_convention": flops.CONVENTION,
            **validation.val_columns(val),
            "train_loss_ema": ema if math.isfinite(ema) else None,
            "lr": self.optim.lr,
            "precision": spec.train.precision,
            "device": f"{device} ({platform.machine()})" if device == "cpu" else device,
            "workers": self.group.world,
            "samples_per_s": rate,
            "mfu": per_sample * rate / (peak * self.group.world) if peak and rate else None,
            "duration_s": self._elapsed(),
        }


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generator that dropout draws from; `torch.manual_seed` also visits every other backend, 1.4 ms a step."""
    generator = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
    generator.manual_seed(seed)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))
