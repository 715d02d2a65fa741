"""What defines a run: `RunSpec` and its sections, JSON both ways, and the keys that are hashes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Scalar = int | float | str | bool | None


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
    media: bool = True
    """Whether runs keep what there is to look at: images of predictions, sampled text."""


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
