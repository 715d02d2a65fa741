"""What a study costs beyond its training: 48 short runs on 2 lanes beside a bare Python loop in 2 processes.

    python benchmarks/orchestration.py

Both do the same trainings, validations and checkpoints of the same runs, and must end in the same losses to the last bit. Both
are timed from the first training step to the last result. The study's fixed start-up, from the command to that first step, is
printed beside it. The bare loop logs nothing, commits nothing and survives nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from scalespec.analysis import tables
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
    "train": {"checkpoints": 6, "reuse_trunk": False},
    "spectra": {"every": "never"},
    "report": False,
}


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


def bare_process(specs: Sequence[RunSpec], prepared: Prepared, folder: str, barrier: object, out: object) -> None:
    torch.set_num_threads(1)
    barrier.wait()  # type: ignore[attr-defined]
    began = time.time()
    losses = {spec.run_key: bare_run(spec, prepared, Path(folder, spec.run_key)) for spec in specs}
    out.put((began, time.time(), losses))  # type: ignore[attr-defined]


def bare(
    specs: Sequence[RunSpec], prepared: Prepared, lanes: Sequence[Sequence[str]], folder: str
) -> tuple[float, dict[str, float]]:
    """Seconds from the first step to the last result, and the losses. Each process has the runs of one lane of the study."""
    context = mp.get_context("spawn")
    barrier, out = context.Barrier(len(lanes)), context.Queue()
    by_key = {spec.run_key: spec for spec in specs}
    processes = [
        context.Process(target=bare_process, args=([by_key[key] for key in lane], prepared, folder, barrier, out))
        for lane in lanes
    ]
    for process in processes:
        process.start()
    found = [out.get() for _ in processes]
    for process in processes:
        process.join()
    return max(f[1] for f in found) - min(f[0] for f in found), {key: loss for f in found for key, loss in f[2].items()}


def study(folder: Path) -> tuple[float, float, dict[str, float], list[list[str]]]:
    """Seconds of training and of start-up, the losses, and the runs of each lane."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    began = time.time()
    subprocess.run([sys.executable, "-m", "scalespec", "run", str(file), "--storage", str(folder)], check=True)
    root = folder / STUDY["name"]  # type: ignore[operator]
    first, last, losses = float("inf"), 0.0, {}
    for run in (root / "runs").iterdir():
        losses[run.name] = json.loads((run / "e000001/result.json").read_text())["val_loss"]
        last = max(last, (run / "e000001/result.json").stat().st_mtime)
        for part in run.glob("e*/metrics/*"):
            table = tables.read_parquet(str(part))
            steps, times = table["step"].to_pylist(), table["time_ms"].to_pylist()
            first = min([first, *(t / 1000 for s, t in zip(steps, times, strict=True) if s == 1)])
    packs = json.loads((root / "plan.json").read_text())["packs"]
    return last - first, first - began, losses, [pack["run_keys"] for pack in packs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="pairs of study and bare loop")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    grid = expand(parse_study(yaml.safe_dump(STUDY), "study"))
    prepared = next(iter(grid.prepared.values()))
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours, start_up, losses, lanes = study(Path(folder))
            theirs, bare_losses = bare(grid.runs, prepared, lanes, f"{folder}/bare")
        assert losses == bare_losses, "the study and the bare loop must end in the same losses"
        seconds = theirs * len(lanes) / len(losses)
        print(
            f"{len(losses)} runs on {len(lanes)} lanes: study {ours:.1f} s, bare loop {theirs:.1f} s ({seconds:.2f} s a run)"
        )
        print(f"ratio {ours / theirs:.3f} (at most 1.3)")
        print(f"start-up {start_up:.1f} s, from the command to the first training step (at most 30 s)")


if __name__ == "__main__":
    main()
