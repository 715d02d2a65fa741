"""What follows the last result of a study: spectra, tables, laws and report, in CPU seconds of all processes and in wall time.

    python benchmarks/conclude.py STUDY_DIR [--repeat N] [--cache DIR] [--json FILE]

STUDY_DIR is the folder of a finished study; the work is done on a copy without spectra, tables and report. Ray is started before
the clock; its workers are not. The clock counts this process and every process below it, looked at twenty times a second, so that
of a process that ends at most its last twentieth is lost. Nulls of random matrices are drawn anew in each round (--cache: they are
kept in that folder, as on a machine that has done such a study before).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from scalespec.orchestrator.conclude import fit_laws, open_study, write_tables
from scalespec.orchestrator.design import log as ask_log
from scalespec.orchestrator.engine import cluster
from scalespec.orchestrator.report import page
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.store import run_tables

EVERY_S = 0.05
PHASES = ("spectra", "tables", "laws", "report")
MADE = ("spectra", "tables", "report", "mlflow*", "mlartifacts")


class Clock:
    """CPU seconds of this process and of all below it, ended ones included, and the wall time of each phase."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self._below: dict[tuple[int, float], float] = {}
        self._looking = 0.0
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                self._below[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue

    def _watch(self) -> None:
        while True:
            began = time.thread_time()
            with self._lock:
                self._look()
            self._looking += time.thread_time() - began
            time.sleep(EVERY_S)

    def cpu(self) -> float:
        with self._lock:
            self._look()
            return time.process_time() - self._looking + sum(self._below.values())

    def time(self, phase: str, work: Callable[..., Any], *arguments: Any) -> Any:
        cpu, wall = self.cpu(), time.perf_counter()
        found = work(*arguments)
        self.phases[phase] = {"cpu_s": self.cpu() - cpu, "wall_s": time.perf_counter() - wall}
        return found


def conclude(clock: Clock, folder: str) -> int:
    """One round; returns the number of spectral rows."""
    study, store = open_study(folder)
    asks = ask_log.read(store)
    request = stage.Request(store.root, study.spectra.profile, study.spectra.vectors)

    def spectra(cpus: int) -> int:
        checkpoints = run_tables.checkpoints_table(store, ask_log.specs(asks)).to_pylist()
        refs = stage.references(store, checkpoints, study.spectra.every, set())
        return stage.run_stage(store, refs, request, cpus)

    with cluster.connected() as found:
        rows = clock.time("spectra", spectra, found.cpus)
        made = clock.time("tables", write_tables, study, asks, store, {})
        laws = clock.time("laws", fit_laws, made["runs"], made["curves"])
        clock.time("report", page.write, study, store, made, laws)
    return int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cache")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    clock, found = Clock(), []
    for _ in range(arguments.repeat):
        with tempfile.TemporaryDirectory() as home:
            os.environ["SCALESPEC_CACHE"] = arguments.cache or f"{home}/nulls"
            copy = f"{home}/{Path(arguments.study).resolve().name}"
            shutil.copytree(arguments.study, copy, ignore=shutil.ignore_patterns(*MADE))
            rows = conclude(clock, copy)
        whole = {what: sum(clock.phases[name][what] for name in PHASES) for what in ("cpu_s", "wall_s")}
        found.append({"rows": rows, **clock.phases, "together": whole})
        said = [
            f"{name} {spent['cpu_s']:.1f} ({spent['wall_s']:.1f})"
            for name, spent in found[-1].items()
            if name != "rows"
        ]
        print(f"{rows} rows of spectra; CPU-s (wall s): {', '.join(said)}", flush=True)
    print(f"median of {len(found)}: {statistics.median(one['together']['cpu_s'] for one in found):.1f} CPU-s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
