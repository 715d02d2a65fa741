"""How what a study costs its driver grows with its runs: plan, status, resume, tables, and one look of those who follow.

    python benchmarks/growth.py [--runs 1000,10000] [--only plan,status] [--folder DIR] [--points N] [--layers N]

The runs are fabricated through the store: claims, specs, curves, checkpoints, results and spectra as a lane commits them, with
made-up numbers and tiny weights. `plan` and `status` see a study of which every twentieth run is missing; the others a finished
one. Each is measured in a process of its own, from when its modules are imported, with the largest memory of that process.

plan     what `scalespec plan` computes, its probe of the machine's speed included
status   what `scalespec status` computes
resume   what `scalespec run` does on a finished study until it says that nothing is left, and until it knows of no spectra left
tables   all tables, from run folders to Parquet
look     one turn of the driver's loop: nothing new; a new checkpoint; a run's result, after which the design is asked
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import common
import numpy as np

from scalespec.orchestrator import planning, run
from scalespec.orchestrator.conclude import write_tables
from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.store import lease, run_tables, watch
from scalespec.orchestrator.store.folder import StudyStore, read_text
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.file import parse_study
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.study import Study

ASKED = {"plan": 10.0, "status": 4.0, "resume": 2.0, "tables": 15.0, "look": 0.2}
"""Seconds at 10,000 runs."""

PER_SEED = 20
"""Runs of each seed."""

Seconds = dict[str, tuple[float, float]]


def grown(runs: int) -> dict[str, Any]:
    """A study of so many runs: 5 widths × 4 fractions × seeds."""
    fractions = ["1", "1/2", "1/4", "1/8"]
    grid = {"width": [16, 32, 48, 64, 80], "data_fraction": fractions, "seed": list(range(runs // PER_SEED))}
    batch = {"lr": 4e-3, "batch_size": 8, "reference": {"width": 32, "batch_size": 8}}
    return {**common.SMALL, "name": "growth", "grid": grid, "optim": batch, "train": {"checkpoints": 6}}


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of a CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def plan(study: Study, store: StudyStore) -> Seconds:
    return {"plan": timed(lambda: planning.plan_study(study, str(Path(store.root).parent)))}


def status(study: Study, store: StudyStore) -> Seconds:
    return {"status": timed(lambda: run_tables.status_of(store, log.specs(log.read(store))))}


def driver_of(study: Study, store: StudyStore) -> run.Driver:
    """The driver as `run_study` makes it, without Ray and without MLflow."""
    points = Expander()
    Stages(study, points).known()
    driver = run.Driver(study, points, store, lease.Lease(store), Machine(2, 0))
    driver.recorder.tracker = None
    return driver


def resume(study: Study, store: StudyStore) -> Seconds:
    found: list[run.Driver] = []

    def decide() -> None:
        found.append(driver_of(study, store))
        found[0].train()

    seconds = {"resume": timed(decide)}
    assert len(found[0].results) == len(log.specs(found[0].asks))
    assert not found[0].problems
    return {**seconds, "resume: spectra": timed(lambda: found[0].spectra.rest(2))}


def tables(study: Study, store: StudyStore) -> Seconds:
    return {"tables": timed(lambda: write_tables(study, log.read(store), store, {}))}


def look(study: Study, store: StudyStore) -> Seconds:
    """The last run is made up while the driver looks; a lane tells of its commits."""
    driver = driver_of(study, store)
    specs = log.specs(driver.asks)
    driver.work = Mock(begun=True, queued={spec.run_key for spec in specs}, planned=None)
    driver.work.last, driver.work.free_cpus.return_value = News((), 0, {}, {1: 1}, (), {}), 0
    driver._expect(specs)
    (missing,) = [spec for spec in specs if spec.run_key not in driver.results]

    def turn(*hints: tuple[str, str, str]) -> tuple[float, float]:
        driver.work.news.return_value = News(hints, 0, {}, {1: 1}, (missing.run_key,), {})
        return timed(lambda: (driver._look(), driver._ask()))

    driver._ask()
    quiet = [turn() for _ in range(20)]
    told: dict[str, list[tuple[float, float]]] = {"claim": [], "commit": [], "result": []}
    for folder, what in common.commits(store, missing, 100, 4, np.random.default_rng(1)):
        told[what].append(turn(("lane-1", folder, what)))
    assert missing.run_key in driver.results
    return {"look": max(quiet), "look: commit": max(told["commit"]), "look: result": max(told["result"])}


MEASURES: dict[str, Callable[[Study, StudyStore], Seconds]] = {
    "plan": plan,
    "status": status,
    "look": look,
    "resume": resume,
    "tables": tables,
}


def measure(name: str, root: str) -> None:
    """In a process of its own: seconds of each part, and the largest memory [MB]."""
    store = StudyStore(root)
    study = parse_study(read_text(store, "study.yaml") or "", "study.yaml")
    seconds = MEASURES[name](study, store)
    print(json.dumps({"seconds": seconds, "memory": common.peak_mb()}))


def measured(name: str, root: str) -> Seconds:
    typed = [sys.executable, __file__, "--measure", name, "--folder", root]
    said = subprocess.run(typed, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    parts = ", ".join(f"{what} {wall:.2f} s ({cpu:.2f} CPU-s)" for what, (wall, cpu) in found["seconds"].items())
    print(f"  {parts}; memory {found['memory']:.0f} MB; {common.load()}", flush=True)
    return dict(found["seconds"])


def one_size(runs: int, only: list[str], folder: str, points: int, layers: int) -> Seconds:
    """The measures at one number of runs. What is fabricated in `folder` is used again."""
    store = StudyStore(f"{folder}/{runs}/growth")
    if not (asks := log.read(store)):
        common.asked(store, grown(runs))
        asks = log.read(store)
    specs = log.specs(asks)
    out: Seconds = {}
    made = time.perf_counter()
    absent = set(range(0, len(specs), 20))
    for at in absent:
        store.files.delete(f"runs/{specs[at].run_key}")
    there = watch.results(store, [spec.run_key for spec in specs])
    missing = [spec for at, spec in enumerate(specs) if at not in absent and spec.run_key not in there]
    common.fabricate(store, missing, points, layers)
    print(f"{len(specs)} runs; fabricated in {time.perf_counter() - made:.0f} s", flush=True)
    for names, left in ((("plan", "status"), absent - {0}), (("look",), {0}), (("resume", "tables"), set())):
        for name in names:
            if name in only:
                out |= measured(name, store.root)
        common.fabricate(store, [specs[at] for at in sorted(left)], points, layers)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="1000,10000")
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--folder", help="keep what is fabricated here; default: a temporary folder")
    parser.add_argument("--points", type=int, default=100, help="points of curves a run")
    parser.add_argument("--layers", type=int, default=4, help="layers with spectra a checkpoint, of which a run has 6")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.folder)
        return
    sizes = [int(size) for size in arguments.runs.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.folder or temporary
        only = arguments.only.split(",")
        found = [one_size(runs, only, home, arguments.points, arguments.layers) for runs in sizes]
    print(f"CPU-s; {common.load()}")
    for what in found[-1]:
        times = [f"{one[what][1]:.3f}" for one in found]
        asked = f"asked at 10,000: {ASKED[what]:g}" if what in ASKED else ""
        print(f"{what:16} {' → '.join(times)}   {asked}")


if __name__ == "__main__":
    main()
