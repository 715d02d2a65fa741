"""What following a running study costs its driver: storage calls, and CPU time, of recorder, spectra, progress and design.

    python benchmarks/followers.py [--seconds S] [--every S] [--quickstart]

A study of 48 runs and one of 500 with 4,000 checkpoints, all of it finished but for what two lanes do while the clock runs. The
lanes are a process of their own that commits made-up runs through the store, one commit each in turn every `--every` seconds, and
gives word of each as a lane does; neither Ray nor training is part of it, MLflow on SQLite is. Counted is what goes through the
driver's store; what the lanes commit is counted apart. CPU time is the driver's, from the first commit on, and of that the thread
of MLflow's recorder. With --quickstart the driver of a real study is counted, from its first claim to its last result.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import common
import numpy as np

from scalespec.orchestrator import run
from scalespec.orchestrator.design import log
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.store import folder as store_folder
from scalespec.orchestrator.store import lease
from scalespec.orchestrator.store.files import open_files
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.resources import Machine
from scalespec.trainables.spec import RunSpec

SIZES: dict[int, dict[str, Any]] = {
    48: {"width": [16, 32, 48], "data_fraction": ["1", "1/2"], "seed": list(range(8))},
    500: {"width": [16, 32, 48, 64, 80], "data_fraction": ["1", "1/2"], "seed": list(range(50))},
}
LEFT = 40
"""Runs that are not finished when the clock starts: more than lanes commit in its time."""

Hint = tuple[str, str, str]


@contextlib.contextmanager
def counting(root: str) -> Iterator[common.Counted]:
    """Everything that this process asks of the study's storage."""
    counted = common.Counted(open_files(root))
    with (
        mock.patch.object(store_folder, "open_files", return_value=counted),
        mock.patch.object(stage, "open_files", return_value=counted),
    ):
        yield counted


def lanes(root: str, specs: list[RunSpec], every_s: float, told: Any) -> None:
    """Two lanes that commit in turn, each a run after another, until they are ended."""
    store, rng = StudyStore(root), np.random.default_rng(0)
    halves = (specs[::2], specs[1::2])
    working = [(hint for spec in half for hint in common.commits(store, spec, 100, 4, rng)) for half in halves]
    while True:
        for at, lane in enumerate(working):
            told.put((f"lane-{at}", *next(lane)))
            time.sleep(every_s / len(working))


class Told:
    """In place of the queue of Ray's lanes."""

    def __init__(self, told: Any, keys: set[str]) -> None:
        self.told, self.queued, self.begun, self.planned = told, keys, True, None
        self.last = News((), 0, {}, {1: 2}, (), {})
        self.hints = 0

    def free_cpus(self) -> int:
        return 0

    def news(self, timeout_s: float) -> News:
        """What was told; waits for it as `queue.news` does."""
        hints: list[Hint] = []
        with contextlib.suppress(queue.Empty):
            hints.append(self.told.get(timeout=timeout_s))
            while True:
                hints.append(self.told.get_nowait())
        self.hints += len(hints)
        return News(tuple(hints), 0, {}, {1: 2}, (), {})


def simulated(size: int, seconds: float, every_s: float, home: str) -> None:
    root = f"{home}/{size}"
    batch = {"lr": 4e-3, "batch_size": 8, "reference": {"width": 32, "batch_size": 8}}
    written = {**common.SMALL, "name": "followers", "grid": SIZES[size], "optim": batch, "train": {"checkpoints": 8}}
    written["tracking"] = {"uri": f"sqlite:///{root}/mlflow.db"}
    store = StudyStore(root)
    study, specs = common.asked(store, written)
    common.fabricate(store, specs[LEFT:], 100, 4)
    context = mp.get_context("spawn")
    told = context.Queue()
    with counting(root) as counted:
        driver = run.Driver(study, Expander(), StudyStore(root), lease.Lease(StudyStore(root)), Machine(2, 0))
        driver.work = Told(told, {spec.run_key for spec in specs})  # type: ignore[assignment]
        driver._expect(log.specs(driver.asks))
        finished = len(driver.results)
        settle(driver)
        process = context.Process(target=lanes, args=(root, specs[:LEFT], every_s, told), daemon=True)
        process.start()
        driver._look()
        counted.calls.clear()
        driver.work.hints = 0  # type: ignore[attr-defined]
        began, cpu = time.monotonic(), time.process_time()
        mlflow = thread_cpu("recorder")
        while time.monotonic() - began < seconds:
            driver._ask()
            driver._look()
        wall, cpu, mlflow = time.monotonic() - began, time.process_time() - cpu, thread_cpu("recorder") - mlflow
        process.terminate()
        driver.recorder.stop()
    report(f"{size} runs, {finished} of them finished", counted.calls, driver.work.hints, wall, cpu, mlflow)  # type: ignore[attr-defined]


def settle(driver: run.Driver) -> None:
    """Until MLflow has what was finished before the clock starts."""
    while driver.recorder._news or len(driver.recorder.run_ids) < len(driver.results):
        time.sleep(0.2)
    time.sleep(1.0)


def thread_cpu(name: str) -> float:
    """CPU seconds of a thread of this process, where the system tells them."""
    for thread in threading.enumerate():
        stat = Path(f"/proc/self/task/{thread.native_id}/stat")
        if thread.name == name and stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def report(what: str, calls: Counter[str], commits: int, wall: float, cpu: float, mlflow: float) -> None:
    total = sum(calls.values())
    more = (total - commits) / wall
    print(f"{what}: {wall:.0f} s, {commits / wall:.1f} commits/s; {common.load()}")
    print(f"  {total / wall:.1f} storage calls/s: {more:.1f}/s beyond one for each commit (asked: 5)")
    print(f"  {', '.join(f'{name} {count}' for name, count in calls.most_common())}")
    print(
        f"  CPU {100 * cpu / wall:.1f} % of a core (asked: 3), of which MLflow's recorder {100 * mlflow / wall:.1f} %",
        flush=True,
    )


def quickstart(home: str) -> None:
    """The real study. Its driver is this process; calls are noted with their time."""
    file = Path(__file__).resolve().parents[1] / "studies/quickstart.yaml"
    root = f"{home}/quickstart"
    with counting(root) as counted:
        counted.timed = []
        marks = [(time.time(), time.process_time())]
        done = threading.Event()

        def mark() -> None:
            while not done.wait(0.2):
                marks.append((time.time(), time.process_time()))

        threading.Thread(target=mark, daemon=True).start()
        run.run_study(str(file), storage=home, overrides=("report=false", f"tracking.uri=sqlite:///{home}/mlflow.db"))
        done.set()
    claims = common.claims(Path(root))
    results = [next(claim.run.glob("e*/result.json")).stat().st_mtime for claim in claims]
    first, last = claims[0].time, max(results)
    calls = Counter(what for when, what in counted.timed if first <= when <= last)
    files = [path for path in Path(root, "runs").rglob("*") if path.suffix in (".json", ".parquet")]
    commits = sum(path.name in ("claim.json", "manifest.json", "result.json") or "part-" in path.name for path in files)
    cpu = [next(spent for when, spent in marks if when >= moment) for moment in (first, last)]
    report(f"quickstart, {len(claims)} runs", calls, commits, last - first, cpu[1] - cpu[0], float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two commits of a lane")
    parser.add_argument("--quickstart", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        if arguments.quickstart:
            quickstart(home)
            return
        for size in SIZES:
            simulated(size, arguments.seconds, arguments.every, home)


if __name__ == "__main__":
    main()
