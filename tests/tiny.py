"""The built-in tasks on data made by integer arithmetic, the same bytes everywhere, and groups of workers that train them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scalespec.trainables.checkpoints import RunFolder, local_run
from scalespec.trainables.data import identity
from scalespec.trainables.loop import LOOP_VERSION, Trainer
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.spec import DataConfig, OptimConfig, Reference, RunSpec, ScheduleConfig, TrainConfig
from scalespec.trainables.task import Dataset, make_task


def text(windows: int = 2000, context: int = 16) -> Dataset:
    """Windows of a sequence over 64 ids with a pattern that a small model finds in a few hundred steps."""
    steps = np.arange(windows * (context + 1), dtype=np.int64) ** 2 % 31 % 7
    ids = (np.cumsum(steps) % 64).astype(np.uint8).reshape(windows, context + 1)
    held = windows // 10
    return Dataset((ids[held:],), (ids[:held],), context, identity(ids))


def images(count: int = 2000) -> Dataset:
    """Noisy images of 28 × 28 with a slightly brighter bar whose row is the class, but for every seventh."""
    labels = np.arange(count, dtype=np.int64) * 7 % 10
    pixels = np.arange(count * 28 * 28, dtype=np.int64).reshape(count, 28, 28) * 2654435761 % 2**32 // 2**25
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        row = 2 * (label if index % 7 else (label + 1) % 10) + 3
        image[row : row + 3, 4:24] += 40
    pixels = pixels.astype(np.uint8)
    held = count // 10
    return Dataset((pixels[held:], labels[held:]), (pixels[:held], labels[:held]), 1, identity(pixels, labels))


TASKS: dict[str, tuple[dict[str, Any], Callable[[], Dataset], int]] = {
    "gpt": ({"context": 16, "vocab": 64}, text, 16),
    "mnist_cnn": ({}, images, 4),
}


def tiny(task: str, *, train: dict[str, Any] | None = None, **options: Any) -> tuple[RunSpec, Prepared]:
    """A run of 225 steps of 8 examples, and what it needs."""
    defaults, load, width = TASKS[task]
    made = make_task(task, {**defaults, **options})
    data = load()
    spec = RunSpec(
        "tiny",
        task,
        made.VERSION,
        LOOP_VERSION,
        width,
        Fraction(1),
        seed=0,
        options=asdict(made.options),  # type: ignore[attr-defined]
        data=DataConfig("synthetic"),
        data_identity=data.identity,
        optim=OptimConfig(4e-3, 8, Reference(width, 8)),
        schedule=ScheduleConfig("wsd", warmup=16 * 8 * data.samples_per_example),
        train=TrainConfig(**{"checkpoints": 4, "precision": "fp32", "workers": 1, **(train or {})}),
    )
    return spec, Prepared(made, data)


def curve(run: RunFolder, metric: str = "train_loss") -> dict[int, float]:
    """step → value of a finished run."""
    return {row["step"]: row["value"] for row in run.metrics() if row["metric"] == metric}


def train(folder: str, name: str, *, trunk: bool = False, **options: Any) -> None:
    """A run in this process, alone or as one of a group, with one thread; through a trunk of its own or without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec, prepared = tiny(name, **options)
    Trainer(spec, prepared, local_run(folder), local_run(f"{folder}-trunk") if trunk else None).run()
    torch.set_num_threads(threads)


def train_all(folder: str, **options: Any) -> None:
    """Runs of both tasks, the CNN's with dropout."""
    train(f"{folder}/gpt", "gpt", **options)
    train(f"{folder}/mnist_cnn", "mnist_cnn", dropout=0.2, **options)


def in_group(world: int, function: Callable[..., None], *args: Any, **options: Any) -> None:
    """Calls `function` in each of `world` processes that talk through gloo. It lies in a module that can be imported."""
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(_member, (world, meeting, function, args, options), nprocs=world)


def _member(rank: int, world: int, meeting: str, function: Callable[..., None], args: Any, options: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}/group", rank=rank, world_size=world)
    function(*args, **options)
    dist.destroy_process_group()
