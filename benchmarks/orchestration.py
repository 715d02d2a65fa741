"""What a study costs beyond its training: 48 short runs on 2 lanes beside a bare Python loop in 2 processes.

    python benchmarks/orchestration.py [--repeats N]

Both do the same trainings, validations and checkpoints of the same runs, longest first, and must end in the same losses to the
last bit. Both are timed from the first training step to the last result, by the clock and in CPU seconds of all their processes.
The bare loop logs nothing, commits nothing and survives nothing. The study's fixed start-up, from the command until both lanes have
made their first step, is printed beside it: time, CPU seconds, processes at that moment, and the memory that the processes of lanes
other than their workers take. On a machine that others use the clock says little and CPU seconds somewhat more: the load is
printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
import yaml
from safetensors.torch import save_file

from scalespec.orchestrator.study.file import parse_study
from scalespec.orchestrator.study.grid import expand
from scalespec.trainables.family import checkpoint_steps, steps_of
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.rules import scaling, schedules
from scalespec.trainables.spec import RunSpec
from scalespec.trainables.streams import order, seeded

STUDY = {
    "name": "orchestration",
    "task": {"name": "gpt", "layers": 2, "context": 64},
    "data": {"source": "stdlib", "tokenizer": "bytes", "limit": 2560},
    "grid": {"width": [16, 32, 48, 64], "data_fraction": ["1", "3/4", "1/2"], "seed": [0, 1, 2, 3]},
    "optim": {"lr": 4e-3, "batch_size": 32, "reference": {"width": 32, "batch_size": 32}},
    "schedule": {"name": "wsd", "warmup": 16384},
    "train": {"checkpoints": 6, "reuse_trunk": False, "media": False},  # the bare loop draws no samples
    "spectra": {"every": "never"},
    "report": False,
}


HELPERS = ("ray::IDLE", "ray::TrainController", "ray::RayTrainWorker", "ray::SynchronizationActor", "ray::drive_lane")
"""What Ray may start for a lane beside its worker."""


def bare_run(spec: RunSpec, prepared: Prepared, folder: Path) -> float:
    """One run, as one would write it by hand. Returns the final validation loss."""
    task, data, batch = prepared.task, prepared.data, spec.optim.batch_size
    steps = steps_of(data.train_examples, spec.data_fraction, 1, batch)
    kept = checkpoint_steps(steps, spec.train.checkpoints)
    torch.manual_seed(seeded(spec.seed, "init"))
    model = task.build(spec.width)
    with torch.device("meta"):
        reference = task.build(spec.optim.reference.width)
    optim = scaling.scaled_optim(spec.optim)
    groups = scaling.param_groups(model, reference, spec.optim.width_rule, optim)
    optimizer = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, fused=True)
    indices = order(spec.seed, data.train_examples)
    folder.mkdir(parents=True)
    loss = 0.0
    for step in range(steps + 1):
        if step in kept:
            save_file(
                {name: value.detach() for name, value in model.named_parameters()}, folder / f"{step}.safetensors"
            )
            loss = validate(prepared, model)
        if step == steps:
            return loss
        for group in optimizer.param_groups:
            scale = schedules.multiplier(spec.schedule, step, steps, batch * data.samples_per_example)
            group["lr"] = group["base_lr"] * scale
        rows = indices[step * batch : (step + 1) * batch]
        inputs = tuple(torch.from_numpy(array[rows]) for array in data.train)
        task.losses(model, inputs).loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    raise AssertionError


@torch.no_grad()
def validate(prepared: Prepared, model: torch.nn.Module) -> float:
    model.eval()
    parts = []
    for first in range(0, prepared.data.val_examples, 256):
        inputs = tuple(torch.from_numpy(array[first : first + 256].copy()) for array in prepared.data.val)
        parts.append(prepared.task.losses(model, inputs).loss_B.double())
    model.train()
    return float(torch.cat(parts).numpy().mean())


def bare_process(todo: Any, prepared: Prepared, folder: str, barrier: Any, out: Any) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    began, cpu, losses = time.time(), time.process_time(), {}
    while (spec := todo.get()) is not None:
        losses[spec.run_key] = bare_run(spec, prepared, Path(folder, spec.run_key))
    out.put((began, time.time(), time.process_time() - cpu, losses))


def bare(
    specs: Sequence[RunSpec], prepared: Prepared, lanes: int, folder: str
) -> tuple[float, float, dict[str, float]]:
    """Seconds from the first step to the last result, CPU seconds, and the losses. The processes share a queue of the runs."""
    context = mp.get_context("spawn")
    barrier, todo, out = context.Barrier(lanes), context.Queue(), context.Queue()
    for spec in [*specs, *[None] * lanes]:
        todo.put(spec)
    processes = [
        context.Process(target=bare_process, args=(todo, prepared, folder, barrier, out)) for _ in range(lanes)
    ]
    for process in processes:
        process.start()
    found = [out.get() for _ in processes]
    for process in processes:
        process.join()
    wall = max(f[1] for f in found) - min(f[0] for f in found)
    return wall, sum(f[2] for f in found), {key: loss for f in found for key, loss in f[3].items()}


@dataclass(frozen=True)
class Ran:
    """What was seen of a study."""

    wall_s: float
    """From the first step to the last result."""
    cpu: dict[str, float]
    """CPU seconds in that time, by the name of the process."""
    start_up_s: float
    """From the command until every lane has made a step."""
    start_up: common.Look
    lanes: tuple[int, ...]
    """Processes of the workers."""
    losses: dict[str, float]
    keys: list[str]
    """In the order in which lanes are given them."""


def study(folder: Path) -> Ran:
    file = common.written(folder, STUDY)
    began = time.time()
    process = common.scalespec("run", file, "--storage", folder)
    sampler = common.Sampler(process.pid)
    assert process.wait() == 0
    root = folder / str(STUDY["name"])
    results = {run.name: next(run.glob("e*/result.json")) for run in (root / "runs").iterdir()}
    losses = {key: json.loads(result.read_text())["val_loss"] for key, result in results.items()}
    last = max(result.stat().st_mtime for result in results.values())
    steps: dict[int, float] = {}
    for claim in common.claims(root):
        steps.setdefault(claim.pid, common.first_step(claim.run))
    first, both = min(steps.values()), max(steps.values())
    units = json.loads((root / "plan.json").read_text())["units"]
    keys = [key for unit in sorted(units, key=lambda unit: -unit["seconds"]) for key in unit["run_keys"]]
    before, after = sampler.at(first).by_name, sampler.at(last).by_name
    cpu = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return Ran(last - first, cpu, both - began, sampler.at(both), tuple(steps), losses, keys)


def say_start_up(ran: Ran) -> None:
    look, lanes = ran.start_up, ran.lanes
    names = Counter(name for name, _ in look.alive.values())
    helpers = [mb for pid, (name, mb) in look.alive.items() if name in HELPERS and pid not in lanes]
    print(f"start-up {ran.start_up_s:.1f} s until {len(lanes)} lanes train (asked: 15 to 18 on quiet cores)")
    print(
        f"  {look.cpu:.1f} CPU-s (asked: 36); {len(look.alive)} processes (asked: 13): {', '.join(f'{n} {c}' for n, c in names.items())}"
    )
    print(f"  {sum(helpers) / len(lanes):.0f} MB of helpers a lane (asked: 60), {len(helpers)} processes")
    memory = sorted(((mb, name) for name, mb in look.alive.values()), reverse=True)
    print(f"  resident: {', '.join(f'{name} {mb:.0f}' for mb, name in memory)} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="pairs of study and bare loop")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    grid = expand(parse_study(yaml.safe_dump(STUDY), "study"))
    prepared, specs = next(iter(grid.prepared.values())), {spec.run_key: spec for spec in grid.runs}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours = study(Path(folder))
            lanes = len(ours.lanes)
            wall, cpu, losses = bare([specs[key] for key in ours.keys], prepared, lanes, f"{folder}/bare")
        assert ours.losses == losses, "the study and the bare loop must end in the same losses"
        print(
            f"{len(losses)} runs on {lanes} lanes, losses equal: study {ours.wall_s:.1f} s, bare loop {wall:.1f} s; {common.load()}"
        )
        spent = sum(ours.cpu.values())
        print(
            f"ratio {ours.wall_s / wall:.3f} by the clock (asked: 1.10), {spent / cpu:.3f} in CPU-s ({spent:.1f} and {cpu:.1f})"
        )
        print(f"  {', '.join(f'{name} {seconds:.1f}' for name, seconds in ours.cpu.items() if seconds >= 0.05)}")
        say_start_up(ours)


if __name__ == "__main__":
    main()
