"""A task of a user's own, by the documented protocol: an MLP that learns a fixed teacher, in milliseconds."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from scalespec.trainables.data import identity
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Dataset, Losses


@dataclass(frozen=True)
class Options:
    dropout: float = 0.0
    kill_width: int = 0
    """Faults for tests, in Ray's workers only: a model of this width kills its process, until `kill_file` has `kill_times` bytes."""
    kill_file: str = ""
    kill_times: int = 0
    kill_step: int = 5
    raise_width: int = 0
    explode_width: int = 0
    sleep_s: float = 0.0
    slow: bool = False
    """An option that is true or false; it does nothing."""


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.hidden = nn.Linear(8, width)
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(torch.relu(self.inner(torch.relu(self.hidden(x))))))
        return logits


class Toy:
    VERSION: ClassVar[int] = 1
    Options: ClassVar[type] = Options
    UNIT: ClassVar[str] = "images"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.calls: Counter[int] = Counter()

    @staticmethod
    def round_width(width: float) -> int:
        return max(1, round(width))

    def load(self, data: DataConfig) -> Dataset:
        rng = np.random.default_rng(0)
        count = data.limit or 2048
        x = rng.standard_normal((count + 200, 8)).astype(np.float32)
        teacher = rng.standard_normal((8, 4))
        y = (np.tanh(x) @ teacher + 0.5 * rng.standard_normal((count + 200, 4))).argmax(1)
        train, val = (x[:count], y[:count]), (x[count:], y[count:])
        return Dataset(train, val, 1, identity(*train, *val), "a fixed teacher")

    def build(self, width: int) -> nn.Module:
        return Mlp(width, self.options.dropout)

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        x, y = batch
        width = getattr(model, "module", model).width
        if model.training and x.device.type != "meta" and "RAY_RAYLET_PID" in os.environ:
            self.calls[width] += 1
            self._fault(width)
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y, reduction="none")
        if model.training and width == self.options.explode_width:
            loss = loss * float("nan")
        return Losses(loss, (logits.argmax(1) == y).float())

    def _fault(self, width: int) -> None:
        options = self.options
        if width == options.raise_width:
            raise RuntimeError("a bug of the user's own")
        if width == options.kill_width and self.calls[width] == options.kill_step:
            marks = Path(options.kill_file)
            before = len(marks.read_bytes()) if marks.exists() else 0
            if before < options.kill_times:
                marks.write_bytes(b"x" * (before + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        if options.sleep_s:
            time.sleep(options.sleep_s)
