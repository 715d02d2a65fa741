"""SIGKILL of the driver at three random moments, then the same command again: nothing repeated, nothing lost.

    python benchmarks/resume.py [--seed N]

Every table must equal the uninterrupted study's in all columns but those that tell the time (duration, start, throughput, the
MLflow id), losses bit for bit; MLflow must have exactly one run for each key and no metric point twice. Prints the ratio of
the training steps executed in all attempts to those of the uninterrupted study.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

from scalespec import analysis

STUDY = {
    "name": "resume",
    "task": {"name": "gpt", "layers": 2, "context": 64},
    "data": {"source": "stdlib", "tokenizer": "bytes", "limit": 3072},
    "grid": {"width": [16, 32, 64], "data_fraction": ["1", "1/2", "1/4"], "seed": [0, 1]},
    "optim": {"lr": 4e-3, "batch_size": 32, "reference": {"width": 32, "batch_size": 32}},
    "schedule": {"name": "wsd", "warmup": 16384},
    "train": {"checkpoints": 6, "resume_every_s": 1.0},
    "report": False,
}
WALL_CLOCK = ["duration_s", "started_at", "mlflow_run_id", "samples_per_s", "mfu", "cost_usd"]


def start(file: Path, storage: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "scalespec", "run", str(file), "--storage", str(storage)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def training_has_begun(root: Path) -> bool:
    return any(root.glob("runs/*/e*/claim.json"))


def interrupted(file: Path, storage: Path, seconds: float, kills: int, rng: random.Random) -> list[float]:
    """Runs the study, killing its driver `kills` times at random moments of its training. Returns the moments."""
    moments = []
    for _ in range(kills):
        process = start(file, storage)
        while not training_has_begun(storage / STUDY["name"]):  # type: ignore[operator]
            assert process.poll() is None, "the study ended before it could be killed"
            time.sleep(0.05)
        claims = len(list((storage / STUDY["name"]).glob("runs/*/e*/claim.json")))  # type: ignore[operator]
        while len(list((storage / STUDY["name"]).glob("runs/*/e*/claim.json"))) == claims and moments:  # type: ignore[operator]
            assert process.poll() is None, "the study ended before it could be killed"
            time.sleep(0.05)
        moment = rng.uniform(0, seconds / (kills + 1))
        time.sleep(moment)
        assert process.poll() is None, "the study ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        moments.append(moment)
    assert start(file, storage).wait() == 0
    return moments


def compare(ours: Path, whole: Path) -> None:
    left, right = analysis.load(ours), analysis.load(whole)
    for name in ("runs", "curves", "checkpoints", "spectra", "spectra_summary", "laws"):
        a, b = (
            frame.drop(columns=[c for c in WALL_CLOCK if c in frame])
            for frame in (getattr(left, name), getattr(right, name))
        )
        if name == "curves":
            a, b = (frame[frame["metric"] != "samples_per_s"].reset_index(drop=True) for frame in (a, b))
        pd.testing.assert_frame_equal(a, b, check_exact=True, obj=name)
        print(f"{name}: {len(a)} rows equal")


def check_mlflow(root: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(STUDY["name"])
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    keys = [run.data.tags["run_key"] for run in runs if "run_key" in run.data.tags]
    assert sorted(keys) == sorted(analysis.load(root).runs["run_key"]), "one MLflow run for each key"
    points = 0
    for run in runs:
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            assert len(steps) == len(set(steps)), f"{metric} of {run.info.run_id} has a point twice"
            points += len(steps)
    print(f"MLflow: {len(keys)} runs for {len(set(keys))} keys, {points} points, none twice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["SCALESPEC_GIT_COMMIT"] = "benchmark"  # a commit made meanwhile is no difference between the studies
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "study.yaml"
        file.write_text(yaml.safe_dump(STUDY))
        assert start(file, folder / "whole").wait() == 0
        whole = folder / "whole" / "resume"
        seconds = training_seconds(whole)
        moments = interrupted(file, folder / "killed", seconds, 3, random.Random(arguments.seed))
        print(f"killed {', '.join(f'{moment:.1f} s' for moment in moments)} after training had begun or gone on")
        compare(folder / "killed" / "resume", whole)
        check_mlflow(folder / "killed" / "resume")
        ratio = training_seconds(folder / "killed" / "resume", marginal=True) / training_seconds(whole, marginal=True)
        print(f"ratio of the training time in the killed study's results to the uninterrupted one's: {ratio:.2f}")


def training_seconds(root: Path, *, marginal: bool = False) -> float:
    """Seconds from the first start to the last end; with `marginal`, the sum over runs."""
    runs = analysis.load(root).runs
    if marginal:
        return float(runs["duration_s"].sum())
    ends = runs["started_at"] + pd.to_timedelta(runs["duration_s"], unit="s")
    return float((ends.max() - runs["started_at"].min()).total_seconds())


if __name__ == "__main__":
    main()
