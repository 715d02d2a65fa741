"""What defines a run: `RunSpec` and its sections, JSON both ways, and the keys that are hashes of them.

The sections are the one definition of every key of `data`, `optim`, `schedule` and `train` (see `trainables.keys`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from fractions import Fraction
from typing import Any

from scalespec.trainables.keys import AUTO, canonical, differing, key, restored

Scalar = int | float | str | bool | None

# `born` is the default of the day on which a key was introduced. It is never edited: it says which runs have no such key in
# their identity. A default may change, and then runs get other keys because they are other runs.


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from. What they are is hashed as `data_identity`."""

    source: str = key("Name that the task knows, or a Hugging Face dataset name.", hashed=False, axis=True)
    path: str | None = key(
        "Folder or file on disk; null: fetched through `datasets` by name.", default=None, hashed=False
    )
    limit: int | None = key(
        "At most so many examples: images of the training split, or windows of the text (validation included).",
        default=None,
        unit="examples",
        least=1,
        hashed=False,
        axis=True,
    )
    tokenizer: str | None = key(
        "Text only: a tiktoken encoding name, or `bytes` for the 256 byte values; null: the task's default.",
        default=None,
        hashed=False,
        axis=True,
    )


@dataclass(frozen=True)
class Reference:
    """The model and batch for which `optim.lr` was tuned; the rules scale from here."""

    width: int = key("Width at which `optim.lr` holds.", least=1, most=2**24, axis=False)
    batch_size: int = key("Batch size at which `optim.lr` holds.", unit="examples", least=1, axis=False)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer at the reference point, and the rules that carry it to other widths and batches."""

    lr: float = key("Peak learning rate at `reference`.", over=0)
    batch_size: int = key(
        "Global batch; the number of workers divides it and never changes it.", unit="examples", least=1
    )
    reference: Reference = key("Where `lr` was tuned.")
    name: str = key("Optimizer.", default="adamw", born="adamw", choices=("adamw", "adam", "sgd"))
    betas: tuple[float, float] = key(
        "Decays of Adam's averages, at the reference batch size.",
        default=(0.9, 0.99),
        born=(0.9, 0.99),
        least=0,
        below=1,
    )
    eps: float = key("Adam's ε, at the reference batch size.", default=1e-8, born=1e-8, over=0)
    weight_decay: float = key(
        "Decoupled weight decay of tensors with two or more dimensions.", default=0.0, born=0.0, least=0
    )
    grad_clip: float | None = key("Largest global gradient norm; null: no clipping.", default=1.0, born=1.0, over=0)
    width_rule: str = key(
        "How the rate of a matrix follows its fan-in from the reference width.",
        default="inverse_sqrt_fan_in",
        born="inverse_sqrt_fan_in",
        choices=("inverse_sqrt_fan_in", "mup", "none"),
    )
    batch_rule: str = key(
        "How the optimizer follows the batch size from the reference.",
        default="sqrt",
        born="sqrt",
        choices=("sqrt", "linear", "none", "inverse_sqrt"),
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate multiplier over the run."""

    name: str = key(
        "Shape: warmup, plateau and cooldown; cosine; constant; or a linear ramp.",
        default="wsd",
        born="wsd",
        choices=("wsd", "cosine", "constant", "ramp"),
    )
    warmup: int = key(
        "The same for every data fraction.", default=0, born=0, unit="samples (images or tokens)", least=0
    )
    cooldown: float = key("Share of the steps, at the end, for `wsd`.", default=0.2, born=0.2, over=0, below=1)


@dataclass(frozen=True)
class TrainConfig:
    """How a run is executed. What changes no numbers is recorded and not hashed."""

    epochs: int = key("Passes over the data.", default=1, born=1, least=1, most=1_000_000)
    precision: str = key(
        "Of the forward pass: bf16 is autocast; auto: bf16 on GPUs, else fp32.",
        default=AUTO,
        born="fp32",
        choices=(AUTO, "fp32", "bf16"),
        auto=True,
    )
    checkpoints: int = key(
        "Analysis weights kept, log-spaced in steps, step 0 and the last among them.",
        default=8,
        least=2,
        most=1000,
        hashed=False,
    )
    # in the key of a run whose model draws random numbers of its own; see `RunSpec.random_forward`
    workers: int = key(
        "Processes that share a batch; auto: by the time that the run takes.",
        default=AUTO,
        born=1,
        least=1,
        auto=True,
        hashed=False,
    )
    reuse_trunk: bool = key(
        "Whether runs that differ in the data fraction share their steps before the cooldown.",
        default=True,
        hashed=False,
    )
    resume_every_s: float = key("Training between two resume states.", default=30.0, unit="s", over=0, hashed=False)
    stall_timeout_s: float = key(
        "A run that makes no step for so long is ended and counted as a death of its worker.",
        default=1800.0,
        unit="s",
        over=0,
        hashed=False,
    )
    media: bool = key(
        "Whether runs keep what there is to look at: images of predictions, sampled text.", default=True, hashed=False
    )


@dataclass(frozen=True)
class RunSpec:
    """Everything that defines one run. JSON both ways; equal numbers have equal `run_key`s.

    Raises ValueError where `train` still holds an `auto`.
    """

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
    born: Mapping[str, Scalar] = field(default_factory=dict)
    """Of options whose definition tells it, the value that leaves the key as it is; kept here so that who reads a run
    need not import its task."""
    unit: str = ""
    """What D counts, the task's UNIT: images | tokens; for who reads a run without its task."""
    random_forward: bool = False
    """Whether the model itself draws random numbers in training, as torch's own dropout does: then two workers draw others
    than one, and their number is part of the key."""

    def __post_init__(self) -> None:
        for name, value in vars(self.train).items():
            if value == AUTO:
                raise ValueError(f"train.{name} is not resolved: a run has no `auto`")

    def value_of(self, axis: str) -> Any:
        """The run's value on an axis, whether or not its own grid has that one: an option of the task by its name, or a dotted key."""
        if "." not in axis:
            return self.options.get(axis)
        found: Any = self
        for part in axis.split("."):
            found = getattr(found, part)
        return found

    def identity(self) -> dict[str, Any]:
        """What is hashed: all that changes the numbers, where it is not what it was when it was introduced."""
        versions = {"task_version": self.task_version, "loop_version": self.loop_version}
        options = {
            name: canonical(value)
            for name, value in self.options.items()
            if name not in self.born or canonical(value) != canonical(self.born[name])
        }
        sections = {
            "options": options,
            "optim": differing(self.optim),
            "schedule": differing(self.schedule),
            "train": dict(differing(self.train))
            | ({"workers": self.train.workers} if self.random_forward and self.train.workers != 1 else {}),
        }
        return {
            "task": self.task,
            "width": self.width,
            "data_fraction": str(self.data_fraction),
            "seed": self.seed,
            "data_identity": self.data_identity,
            **{name: version for name, version in versions.items() if version != 1},
            **{name: section for name, section in sections.items() if section},
        }

    @functools.cached_property
    def run_key(self) -> str:
        """Width, percent of the data, seed and hash, such as `w0512-f025-s1-3fa9c1d2`: a function of the identity alone."""
        percent = f"f{int(self.data_fraction * 100):03d}"
        return f"w{self.width:04d}-{percent}-s{self.seed}-{_digest(self.identity())}"

    @functools.cached_property
    def family_key(self) -> str:
        """The same without the data fraction: runs of one family share a trunk."""
        identity = self.identity()
        del identity["data_fraction"]
        return f"w{self.width:04d}-s{self.seed}-{_digest(identity)}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `spec.json`; `from_json` is its inverse."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in SECTIONS:
            out[name] = dataclasses.asdict(out[name])
        for name in ("options", "axes", "born"):
            out[name] = dict(out[name])
        return out | {"data_fraction": str(self.data_fraction)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSpec:
        """The spec written by `to_json`, of this version or another: what is missing is what it was when introduced.

        A section may have been restored before.
        Raises TypeError naming what is unknown, or needed and missing.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - set(known)):
            raise TypeError(f"RunSpec: unknown {', '.join(unknown)}; another version of scalespec has written it")
        for name, f in known.items():
            if name not in data and f.default is MISSING and f.default_factory is MISSING:
                raise TypeError(f"RunSpec: {name} is missing")
        sections = {
            name: data[name] if isinstance(data[name], section) else restored(section, data[name])
            for name, section in SECTIONS.items()
        }
        return cls(**{**data, "data_fraction": Fraction(data["data_fraction"]), **sections})


SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
}
"""The sections of a run, by their names in the study file."""


def _digest(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
