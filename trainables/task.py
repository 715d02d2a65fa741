"""The three contracts of a run: `RunSpec` (what to train), `Task` (model and data), `RunIO` (where the results go).

A task of your own is a class with the members of `Task`, named in the study as `package.module:ClassName`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

Scalar = int | float | str | bool | None


class TaskError(ValueError):
    """A task, an option or a data source that cannot be used; the message names it and the remedy."""


class DataChangedError(RuntimeError):
    """The data read here is not the data that the run was planned with."""


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from."""

    source: str
    """Name of the source: one that the task knows, or a Hugging Face dataset name."""
    path: str | None = None
    """A folder or file on disk; None: fetched through `datasets` by name."""
    limit: int | None = None
    """At most so many examples: images of the training split, or windows of the text (validation included)."""
    tokenizer: str | None = None
    """Text only: a tiktoken encoding name, or `bytes` for the 256 byte values. None: the task's default."""


@dataclass(frozen=True)
class Reference:
    """The model and batch for which `OptimConfig.lr` was tuned; the rules scale from here."""

    width: int
    batch_size: int


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer at the reference point, and the rules that carry it to other widths and batches."""

    lr: float
    batch_size: int
    """Examples in a global batch; the number of workers divides it and never changes it."""
    reference: Reference
    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0
    """Largest global gradient norm; None: no clipping."""
    width_rule: str = "inverse_sqrt_fan_in"
    batch_rule: str = "sqrt"


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate multiplier over the run."""

    name: str = "wsd"
    warmup: int = 0
    """Samples (images or tokens), the same for every data fraction."""
    cooldown: float = 0.2
    """Share of the steps, at the end, for `wsd`."""


@dataclass(frozen=True)
class TrainConfig:
    """How a run is executed. Only `epochs` and `precision` change numbers, so only they enter the run's identity."""

    epochs: int = 1
    precision: str = "fp32"
    """Resolved: fp32 | bf16 (autocast)."""
    checkpoints: int = 8
    """Analysis weights kept, log-spaced in steps, step 0 and the last among them."""
    workers: int = 1
    reuse_trunk: bool = True
    resume_every_s: float = 30.0
    """Seconds of training between two resume states."""
    stall_timeout_s: float = 1800.0
    """A run that makes no step for so long is ended and counted as a death of its worker."""


@dataclass(frozen=True)
class RunSpec:
    """Everything that defines one run. JSON both ways; equal numbers have equal `run_key`s."""

    study: str
    task: str
    task_version: int
    loop_version: int
    width: int
    data_fraction: Fraction
    seed: int
    options: Mapping[str, Scalar]
    """The task's options other than width, all of them, defaults filled in."""
    data: DataConfig
    data_identity: str
    """sha256 of the prepared arrays."""
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    axes: Mapping[str, Scalar] = field(default_factory=dict)
    """Values of the study's further axes, dotted name to value; a view of what stands in the fields above."""

    def identity(self) -> dict[str, Any]:
        """What is hashed: all that changes the numbers, and nothing else."""
        return {
            "task": self.task,
            "task_version": self.task_version,
            "loop_version": self.loop_version,
            "width": self.width,
            "data_fraction": str(self.data_fraction),
            "seed": self.seed,
            "options": dict(self.options),
            "data_identity": self.data_identity,
            "optim": dataclasses.asdict(self.optim),
            "schedule": dataclasses.asdict(self.schedule),
            "epochs": self.train.epochs,
            "precision": self.train.precision,
        }

    @property
    def run_key(self) -> str:
        """Readable axes and hash, such as `w0512-f025-s1-3fa9c1d2`."""
        percent = f"f{int(self.data_fraction * 100):03d}"
        return "-".join([f"w{self.width:04d}", percent, f"s{self.seed}", *self._axis_words(), _digest(self.identity())])

    @property
    def family_key(self) -> str:
        """The same without the data fraction: runs of one family share a trunk."""
        identity = self.identity()
        del identity["data_fraction"]
        return "-".join([f"w{self.width:04d}", f"s{self.seed}", *self._axis_words(), _digest(identity)])

    def _axis_words(self) -> list[str]:
        words = (f"{name.rpartition('.')[2]}{value}" for name, value in self.axes.items())
        return [re.sub(r"[^A-Za-z0-9.+_]", "_", word)[:24] for word in words]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `spec.json`; `from_json` is its inverse."""
        out = dataclasses.asdict(self)
        out["data_fraction"] = str(self.data_fraction)
        out["options"], out["axes"] = dict(self.options), dict(self.axes)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSpec:
        """The spec written by `to_json`. Raises TypeError or KeyError where fields are missing or unknown."""
        optim = dict(data["optim"])
        optim["reference"] = Reference(**optim["reference"])
        optim["betas"] = tuple(optim["betas"])
        return cls(
            **{
                **data,
                "data_fraction": Fraction(data["data_fraction"]),
                "data": DataConfig(**data["data"]),
                "optim": OptimConfig(**optim),
                "schedule": ScheduleConfig(**data["schedule"]),
                "train": TrainConfig(**data["train"]),
            }
        )


def _digest(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Dataset:
    """Prepared examples: row i of every array of a split is example i. Arrays may be memory maps or strided views."""

    train: tuple[np.ndarray, ...]
    val: tuple[np.ndarray, ...]
    samples_per_example: int
    """1 for images; the context length (predicted tokens) for text."""
    identity: str
    """sha256 of the prepared arrays; see `trainables.data.identity`."""
    description: str = ""
    """Where it came from, for MLflow's data lineage."""

    @property
    def train_examples(self) -> int:
        return len(self.train[0])

    @property
    def val_examples(self) -> int:
        return len(self.val[0])


class Losses(NamedTuple):
    """Per-example results of one batch of B examples."""

    loss_B: Tensor
    """Loss in nats; for text the mean over the tokens of the window."""
    correct_B: Tensor | None
    """1 or 0, or the share of correct tokens; None where the notion does not apply."""


@runtime_checkable
class Task(Protocol):
    """A model family over width, with its data.

    `Options` is a frozen dataclass whose fields are the task's options with their defaults; all are scalars and any may
    be an axis of the grid. An instance is made from one `Options`. Raise `VERSION` when the same spec gives other numbers.
    """

    VERSION: ClassVar[int]
    Options: ClassVar[type]
    UNIT: ClassVar[str]
    """What D counts: `images` or `tokens`."""

    def __init__(self, options: Any) -> None: ...

    @staticmethod
    def round_width(width: float) -> int:
        """The nearest width that the model can have."""
        ...

    def load(self, data: DataConfig) -> Dataset:
        """Reads and prepares the data. Raises TaskError naming the source or path and the remedy."""
        ...

    def build(self, width: int) -> nn.Module:
        """A freshly initialised model; called under the run's initialisation seed, and on the meta device for counts."""
        ...

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        """Loss and correctness of each example of a batch; the training loss is the mean of `loss_B`."""
        ...


BUILT_IN = {"mnist_cnn": "trainables.mnist_cnn:MnistCnn", "gpt": "trainables.gpt:Gpt"}


def task_class(name: str) -> type[Task]:
    """The class behind a built-in name or `package.module:ClassName`. Raises TaskError naming what is missing."""
    target = BUILT_IN.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        raise TaskError(
            f"task {name!r} is not built in ({', '.join(sorted(BUILT_IN))}); write yours as package.module:ClassName"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(
            f"task {name!r}: cannot import {module_name} ({error}); run where it can be imported"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise TaskError(f"task {name!r}: module {module_name} has no {class_name}")
    missing = [
        member
        for member in ("VERSION", "Options", "UNIT", "round_width", "load", "build", "losses")
        if not hasattr(found, member)
    ]
    if missing:
        raise TaskError(f"task {name!r} lacks {', '.join(missing)}; see the Task protocol in trainables/task.py")
    return found  # type: ignore[no-any-return]


def make_task(name: str, options: Mapping[str, Scalar]) -> Task:
    """The task with its options filled in and checked. Raises TaskError for an unknown option or a value of the wrong type."""
    cls = task_class(name)
    return cls(cls.Options(**checked_options(name, cls, options)))


def checked_options(name: str, cls: type[Task], options: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """All options of the task, given values over defaults, in the order of the class."""
    fields = {f.name: f for f in dataclasses.fields(cls.Options)}
    for key in options:
        if key not in fields:
            raise TaskError(f"task {name} has no option {key!r}; it has: {', '.join(fields) or 'none'}")
    out: dict[str, Scalar] = {}
    for key, spec in fields.items():
        if key not in options:
            if spec.default is dataclasses.MISSING:
                raise TaskError(f"task {name} needs the option {key!r}")
            out[key] = spec.default
            continue
        out[key] = _coerced(name, key, options[key], spec.default)
    return out


def _coerced(task: str, key: str, value: Scalar, default: object) -> Scalar:
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(value, bool) and isinstance(default, bool)
    elif isinstance(default, float):
        value, fits = (float(value), True) if isinstance(value, int | float) else (value, False)
    elif isinstance(default, int):
        fits = isinstance(value, int)
    else:
        fits = default is None or default is dataclasses.MISSING or isinstance(value, type(default))
    if not fits:
        raise TaskError(f"task {task}: option {key} must be a {type(default).__name__}, not {value!r}")
    return value


class State(NamedTuple):
    """A point from which training goes on bit for bit."""

    step: int
    tensors: Mapping[str, Tensor]
    """`model.<name>`, `optim.<name>.<slot>` and the loop's own accumulators."""
    meta: Mapping[str, Any]
    """JSON scalars."""


class ValRows(NamedTuple):
    """Per-example validation results, row i = example i."""

    loss: np.ndarray
    correct: np.ndarray | None
    select: np.ndarray
    """bool: True in the selection half of the fixed permutation."""


class RunIO(Protocol):
    """Where one run (or one family's trunk) keeps its results. Only rank 0 calls it.

    Nothing is visible to readers before it is committed; every commit checks that no newer attempt has claimed the run.
    """

    def log(self, step: int, samples: int, flops: float, metrics: Mapping[str, float]) -> None:
        """Keeps metrics of a step in memory until the next commit."""
        ...

    def save_state(self, state: State, *, keep: bool = False) -> None:
        """Commits the metrics logged so far and, with them, a resume state; `keep` exempts it from the pruning to two."""
        ...

    def save_weights(
        self, step: int, samples: int, flops: float, weights: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        """Commits the analysis weights of a step."""
        ...

    def load_latest(self, at_most: int | None = None) -> State | None:
        """The newest valid state up to a step; one that fails its manifest is passed over."""
        ...

    def rewind(self, step: int) -> None:
        """Drops what an attempt that died had written after `step` without committing a state for it."""
        ...

    def checkpoint_steps(self) -> Sequence[int]:
        """Steps whose analysis weights are committed."""
        ...

    def adopt(self, trunk: Any, step: int, checkpoint_steps: Sequence[int]) -> None:
        """Copies a trunk's metrics up to `step` and its checkpoints at `checkpoint_steps` into this run."""
        ...

    def finish(self, result: Mapping[str, Any], val: ValRows | None) -> None:
        """Commits what is left, then the validation rows, then `result.json`, last."""
        ...


def seeded(seed: int, stream: str, *more: int) -> int:
    """A 63-bit seed for one named stream of a run: `init`, `order`, `dropout`. Streams are independent of each other."""
    word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")
    return int(np.random.SeedSequence([seed, word, *more]).generate_state(1, np.uint64)[0] >> 1)


def order(seed: int, examples: int) -> np.ndarray:
    """The seed's permutation of the training examples, the same at every width; a data fraction is a prefix of it."""
    return np.random.Generator(np.random.PCG64(seeded(seed, "order"))).permutation(examples)


def device_name(device: torch.device) -> str:
    """A name for the `device` column."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
