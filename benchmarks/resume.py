"""SIGKILL of the driver at random moments, then the same command again, until the study is finished: nothing lost, nothing else.

    python benchmarks/resume.py [--kills 20] [--studies grid,staged,tuned] [--seed N] [--folder DIR]

Small studies on the quickstart's data: a grid, one in two stages (a ramp, then a grid at half of the rate that it found) and one
that tunes its rate. Each is run once undisturbed; then `--kills` kills are dealt out among them. Two of three fall after something
of the study has been committed by the present driver, at a random moment; the third anywhere from the start of the command on. A
study that ends before its kills are spent is begun anew in another folder. What is finished must have the same asks in force and
the same tables in all columns but those that tell time, host, attempt and MLflow ids, numbers to the last bit, and exactly one
MLflow run for each key without a point twice. Prints what differs and exits with 1 where anything does.

With --folder, what is there is used again: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import pandas as pd
import psutil

from scalespec import analysis
from scalespec.orchestrator.design import log
from scalespec.orchestrator.store.folder import StudyStore

TRAIN = {"checkpoints": 4, "resume_every_s": 0.3}
SCHEDULE = {"name": "wsd", "warmup": 16384}
GRID = {"width": [16, 32], "data_fraction": ["1", "1/2"], "seed": [0, 1]}
PROBE = {"width": [32], "data_fraction": ["1"], "seed": [0]}
STUDIES: dict[str, dict[str, Any]] = {
    "grid": {"grid": {**GRID, "width": [16, 32, 64]}},
    "staged": {
        "design": [
            {"name": "ramp", "role": "probe", "grid": PROBE, "schedule": {"name": "ramp"}, "optim": {"lr": 1.0}},
            {"name": "grid", "grid": GRID, "optim": {"lr": {"reading": "onset_lr", "of": "ramp", "times": 0.5}}},
        ]
    },
    "tuned": {
        "design": [
            {
                "name": "tuned",
                "tune": {"key": "optim.lr", "factor": 4, "count": 3, "seed": [0], "data_fraction": ["1/2"]},
                "grid": GRID,
            }
        ]
    },
}

TIMES = ["duration_s", "started_at", "mlflow_run_id", "samples_per_s", "mfu", "cost_usd"]
"""Columns that two studies may differ in; of a path the number of the attempt, and of curves the metric samples_per_s."""

LONGEST_S = 900.0
"""A command that takes longer hangs."""


def study_of(name: str) -> dict[str, Any]:
    return {**common.SMALL, "name": name, **STUDIES[name], "train": TRAIN, "report": False}


def start(name: str, storage: Path) -> subprocess.Popen[bytes]:
    file = common.written(storage, study_of(name))
    storage.mkdir(parents=True, exist_ok=True)
    with (storage / "said.txt").open("ab") as said:
        return common.scalespec("run", file, "--storage", storage, stdout=said, stderr=said)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the driver; Ray's processes notice, and those that do not in ten seconds are ended."""
    others = common.below(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(others, timeout=10)
    for one in alive:
        one.kill()


def commits(root: Path) -> int:
    """Claims, manifests and results so far."""
    found = StudyStore(str(root)).files.walk("")
    return sum(path.endswith(("claim.json", "manifest.json", "result.json", ".parquet")) for path in found)


def whole(name: str, home: Path) -> float:
    """The undisturbed study. Returns how long it trained."""
    if not (home / name / "laws.json").exists():
        assert start(name, home).wait(LONGEST_S) == 0, (home / "said.txt").read_text()
    runs = analysis.load(home / name).runs
    ends = runs["started_at"] + pd.to_timedelta(runs["duration_s"], unit="s")
    return float((ends.max() - runs["started_at"].min()).total_seconds())


def disturbed(name: str, home: Path, seconds: float, kills: int, rng: random.Random) -> int:
    """Runs the study to its end, killing its driver as long as `kills` last. Returns how many kills that took."""
    spent = 0
    while True:
        before, process = commits(home / name), start(name, home)
        began = time.monotonic()
        if spent < kills:
            anywhere = rng.random() < 1 / 3
            while not anywhere and process.poll() is None and commits(home / name) == before:
                time.sleep(0.05)
            moment = rng.uniform(0, 2 * seconds + 15 if anywhere else seconds / 2)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                kill(process)
                spent += 1
                words = "after its start" if anywhere else "after its first commit"
                print(
                    f"  {name}: killed {moment:.1f} s {words} ({time.monotonic() - began:.0f} s), {common.load()}",
                    flush=True,
                )
                continue
        if process.wait(LONGEST_S) < 0:
            print(
                f"  {name}: ended by signal {-process.returncode}, which was not sent from here; it goes on", flush=True
            )
            continue
        if process.returncode != 0:
            sys.exit(f"{name} did not end well; {home}/said.txt:\n{(home / 'said.txt').read_text()[-2000:]}")
        return spent


def asks(root: Path) -> list[tuple[Any, ...]]:
    """What is in force."""
    decided = log.in_force(log.read(StudyStore(str(root))))
    return [
        (a.number, a.stage, a.round, a.role, a.digest, dict(a.read), [s.run_key for s in a.points]) for a in decided
    ]


def comparable(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    frame = frame.drop(columns=[column for column in TIMES if column in frame])
    if name == "curves":
        frame = frame[frame["metric"] != "samples_per_s"].reset_index(drop=True)
    if name == "checkpoints":
        frame["path"] = frame["path"].str.replace(r"/e\d+/", "/e*/", regex=True)
    return frame


def differences(ours: Path, undisturbed: Path) -> list[str]:
    """What differs between two studies, in words."""
    out = [] if asks(ours) == asks(undisturbed) else [f"asks: {asks(ours)} and {asks(undisturbed)}"]
    left, right = analysis.load(ours), analysis.load(undisturbed)
    for name in ("runs", "curves", "checkpoints", "spectra", "spectra_summary", "laws"):
        a, b = (comparable(getattr(one, name), name) for one in (left, right))
        try:
            pd.testing.assert_frame_equal(a, b, check_exact=True, obj=name)
        except AssertionError as error:
            out.append(" ".join(str(error).split())[:600])
    return out


def mlflow_faults(root: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(root.name)
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    keys = sorted(run.data.tags["run_key"] for run in runs if "run_key" in run.data.tags)
    wanted = sorted(analysis.load(root).runs["run_key"])
    out = [] if keys == wanted else [f"MLflow has {len(keys)} runs for {len(wanted)} keys"]
    for run in runs:
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            if len(steps) != len(set(steps)):
                out.append(f"MLflow: {metric} of {run.info.run_name} has a point twice")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--studies", default="staged,tuned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["SCALESPEC_GIT_COMMIT"] = "benchmark"  # a commit made meanwhile is no difference between the studies
    names = arguments.studies.split(",")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.folder or Path(temporary)
        record = home / "finished.json"
        done: list[list[Any]] = json.loads(record.read_text()) if record.exists() else []
        seconds = {name: whole(name, home / "whole") for name in names}
        print(f"undisturbed: {', '.join(f'{name} trained {took:.1f} s' for name, took in seconds.items())}", flush=True)
        for at in range(len(done), 10 * arguments.kills):
            left = arguments.kills - sum(spent for _, spent, _ in done)
            if left <= 0:
                break
            name, folder = names[at % len(names)], home / f"killed-{at}"
            spent = disturbed(name, folder, seconds[name], min(left, 5), random.Random(f"{arguments.seed} {at}"))
            found = differences(folder / name, home / "whole" / name) + mlflow_faults(folder / name)
            done.append([name, spent, found])
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(done))
            print(f"{name}: {spent} kills; {'; '.join(found) or 'equal'}", flush=True)
        faults = [fault for _, _, found in done for fault in found]
    kills = sum(spent for _, spent, _ in done)
    print(f"{kills} kills in {len(done)} studies: {len(faults)} differences")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
