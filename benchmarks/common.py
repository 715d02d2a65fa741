"""What several benchmarks share: the command as a person gives it, a fabricated study, storage that counts, and the machine's load."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import yaml

from scalespec.analysis import tables
from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.ask import Seen
from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.store.folder import StudyStore, parquet_bytes
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.file import parse_study, to_yaml
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.family import run_schedule
from scalespec.trainables.files import Files
from scalespec.trainables.io import ValRows
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec

SMALL: dict[str, Any] = {
    "name": "small",
    "task": {"name": "gpt", "layers": 2, "context": 64, "head_dim": 16, "vocab": 256},
    "data": {"source": "stdlib", "tokenizer": "bytes", "limit": 3072},
    "optim": {"lr": 4e-3, "batch_size": 32, "reference": {"width": 32, "batch_size": 32}},
    "schedule": {"name": "wsd", "warmup": 16384},
}
"""Byte-level GPTs on this Python's own source text, as in the quickstart; a study of it needs a name and a grid."""


def written(folder: Path, study: Mapping[str, Any]) -> Path:
    """The study as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{study['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(study), sort_keys=False))
    return file


def scalespec(*words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, from a folder where no source lies."""
    typed = [sys.executable, "-m", "scalespec", *map(str, words)]
    return subprocess.Popen(typed, cwd="/", start_new_session=True, **options)


def load() -> str:
    """How busy the machine is: wall time means little where others use it."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"


class Counted:
    """`Files` around others that counts calls by operation, and by what they concern."""

    def __init__(self, files: Files) -> None:
        self.files, self.calls = files, Counter[str]()
        self.timed: list[tuple[float, str]] | None = None
        """When each was made, where that is wanted."""

    def _counted(self, what: str, path: str) -> None:
        name = f"{what} {path.partition('/')[0] or '.'}"
        self.calls[name] += 1
        if self.timed is not None:
            self.timed.append((time.time(), name))

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        self._counted("read", path)
        return self.files.read(path, start, size)

    def write(self, path: str, data: bytes) -> None:
        self._counted("write", path)
        self.files.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self._counted("create", path)
        return self.files.create(path, data)

    def names(self, folder: str) -> list[str]:
        self._counted("names", folder)
        return self.files.names(folder)

    def walk(self, folder: str) -> list[str]:
        self._counted("walk", folder)
        return self.files.walk(folder)

    def delete(self, path: str) -> None:
        self._counted("delete", path)
        self.files.delete(path)


EXAMPLES = 2900
"""For training, of `SMALL`'s windows."""

# -- when things happened ----------------------------------------------------------------------------------------------------


def first_step(run: Path) -> float:
    """When a run logged its first step [s since epoch]; infinity where it logged none."""
    times = [float("inf")]
    for part in run.glob("e*/metrics/*.parquet"):
        table = tables.read_parquet(str(part))
        times += [t / 1000 for step, t in zip(table["step"].to_pylist(), table["time_ms"].to_pylist()) if step == 1]
    return min(times)


class Claim(NamedTuple):
    """An attempt at a run."""

    time: float
    """[s since epoch]"""
    pid: int
    """Of the lane's worker."""
    run: Path


def claims(root: Path) -> list[Claim]:
    """Every attempt of a study, in order."""
    found = []
    for file in root.glob("runs/*/e*/claim.json"):
        claim = json.loads(file.read_text())
        found.append(Claim(claim["time"], claim["pid"], file.parents[1]))
    return sorted(found)


# -- a study that nobody trained -------------------------------------------------------------------------------------------


def asked(store: StudyStore, written: Mapping[str, Any]) -> tuple[Study, list[RunSpec]]:
    """A study in its folder, its grid asked for, nothing trained."""
    study = parse_study(yaml.safe_dump(dict(written)), "study.yaml")
    store.files.write("study.yaml", to_yaml(study).encode())
    ask = Stages(study, Expander()).ask(Seen([], {}, lambda *_: None))
    log.commit(store, ask, [])
    return study, list(ask.points)


def fabricate(store: StudyStore, specs: Sequence[RunSpec], points: int, layers: int) -> None:
    """Commits finished runs through the store, without training: curves of `points` points, tiny weights, `layers` spectra each.

    Durability is left out: fsync would take most of the time, and readers do not see it.
    """
    durable, os.fsync = os.fsync, lambda _: None  # type: ignore[assignment]
    try:
        rng = np.random.default_rng(0)
        rows: list[dict[str, Any]] = []
        for spec in specs:
            kept = commit_run(store, spec, points, layers, rng)
            rows += (row for step in kept for row in _spectra(spec.run_key, step, layers, rng))
            if len(rows) > 20_000 or spec is specs[-1]:
                name = f"part-{time.time_ns()}-{len(rows):08x}.parquet"
                store.files.write(f"spectra/{name}", parquet_bytes(tables.from_rows(rows, tables.SPECTRA)))
                rows = []
    finally:
        os.fsync = durable


def commit_run(store: StudyStore, spec: RunSpec, points: int, layers: int, rng: np.random.Generator) -> tuple[int, ...]:
    """One run, finished. Returns the steps of its checkpoints."""
    for _ in commits(store, spec, points, layers, rng):
        pass
    return run_schedule(spec, EXAMPLES, shares_trunk=False).kept


def named(layers: int) -> list[str]:
    return [f"blocks.{layer}.weight" for layer in range(layers)]


def commits(
    store: StudyStore, spec: RunSpec, points: int, layers: int, rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """A run commit by commit: (folder, what) after each, as a lane tells it."""
    schedule = run_schedule(spec, EXAMPLES, shares_trunk=False)
    folder, n = store.run(spec.run_key), 12.0 * spec.width**2
    store.write_spec(spec)
    folder.claim("fabricated")
    yield folder.folder, "claim"
    weights = {name: torch.from_numpy(rng.standard_normal((8, 4)).astype(np.float32)) for name in named(layers)}
    samples, flops = 64 * spec.optim.batch_size, 6 * n * 64 * spec.optim.batch_size
    logged = np.unique(np.linspace(1, schedule.steps, max(1, points // 4)).astype(int))
    loss, before = 1.8 + n**-0.3 + float(spec.data_fraction) ** -0.3, -1
    for step in schedule.kept:
        for at in logged[(logged > before) & (logged <= step)].tolist():
            values = {"train_loss": loss, "train_loss_ema": loss, "lr": 1e-3, "grad_norm": 1.0}
            folder.log(at, at * samples, at * flops, values)
        folder.save_weights(step, step * samples, step * flops, weights, {"val_loss": loss})
        before = step
        yield folder.folder, "commit"
    counts = {"params_total": int(n), "params_embedding": 0, "params_matmul": int(n)}
    losses = {
        f"val_loss{half}{se}": loss if not se else 0.01 for half in ("", "_select", "_report") for se in ("", "_se")
    }
    steps = schedule.steps
    folder.facts = {"started_at": time.time(), "code_version": None, "session": "fabricated"}
    result = {
        "status": "done", "error": None, "steps": steps, "samples": steps * samples, "unique_samples": steps * samples,
        **counts, **losses, **dict.fromkeys(("flops_train", "flops_6nd", "flops_matmul", "flops_causal"), steps * flops),
        "flops_convention": "fabricated", "val_accuracy": None, "train_loss_ema": loss, "lr": scaled_optim(spec.optim).lr,
        "precision": "fp32", "device": "none", "workers": 1, "samples_per_s": 1e4, "mfu": None, "duration_s": 1.0,
    }  # fmt: skip
    folder.finish(result, ValRows(np.full(16, loss), None, np.arange(16) < 8))
    yield folder.folder, "result"


def _spectra(run_key: str, step: int, layers: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for layer in named(layers):
        alpha = 2 + float(rng.random())
        yield {
            "run_key": run_key, "step": step, "layer": layer, "profile": "ww-0.7.7", "kind": "dense",
            "rows": 64, "cols": 16, "matrices": 1, "num_evals": 16, "alpha": alpha, "alpha_hill": alpha, "D": 0.1,
            "alpha_weighted": alpha, "log_norm": 1.0, "log_spectral_norm": 1.0, "log_alpha_norm": 1.0, "stable_rank": 4.0,
            "mp_softrank": 0.5, "trusted": True, "status": "ok", "eigenvalues": rng.random(16).tolist(),
        }  # fmt: skip


def peak_mb() -> float:
    """The largest memory that this process has had."""
    if (told := Path("/proc/self/status")).exists():  # getrusage would count the parent's before exec
        return float(re.search(r"VmHWM:\s+(\d+)", told.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


# -- processes -------------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """A process tree at one moment."""

    time: float
    """[s since epoch]"""
    by_name: dict[str, float]
    """CPU seconds of all processes so far, ended ones included as they were last seen."""
    alive: dict[int, tuple[str, float]]
    """pid → what it is, and its memory [MB]."""

    @property
    def cpu(self) -> float:
        return sum(self.by_name.values())


class Sampler:
    """Looks at a process and all below it, now and then, until it ends."""

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self.looks: list[Look] = []
        self._pid, self._every_s, self._cpu = pid, every_s, dict[tuple[int, float], tuple[str, float]]()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while processes := below(self._pid):
            alive = {}
            for process in processes:
                try:
                    with process.oneshot():
                        times, memory = process.cpu_times(), process.memory_info().rss / (1 << 20)
                        words = process.cmdline() or [process.name()]
                        name = "driver" if process.pid == self._pid else _named(words)
                        self._cpu[process.pid, process.create_time()] = (name, times.user + times.system)
                        alive[process.pid] = (name, memory)
                except psutil.Error:
                    continue
            by_name: Counter[str] = Counter()
            for name, seconds in self._cpu.values():
                by_name[name] += seconds
            self.looks.append(Look(time.time(), dict(by_name), alive))
            time.sleep(self._every_s)

    def at(self, moment: float) -> Look:
        """The first look at or after a moment."""
        return next((look for look in self.looks if look.time >= moment), self.looks[-1])


def _named(words: Sequence[str]) -> str:
    """A process by its command line, without its path and options."""
    if len(words) > 2 and words[1].endswith(".py"):
        return Path(words[1]).name
    return Path(words[0].split(" ")[0]).name


def below(pid: int) -> list[psutil.Process]:
    """A process and all below it, as long as it lives."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)] if top.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []
