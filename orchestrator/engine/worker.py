"""What each Train worker does: the runs of its pack, one after another, each to a committed result.

A worker group that Ray restarts comes back here: finished runs are skipped, the others go on from their own states. A run
that has killed its worker twice in one session is `failed`, and the pack goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from scalespec.orchestrator.store.folder import StudyStore
from scalespec.trainables.checkpoints import FencedError, RunFolder, read_json
from scalespec.trainables.errors import DataChangedError
from scalespec.trainables.evals import validation
from scalespec.trainables.group import Group
from scalespec.trainables.history import LAST_WORDS, attempt_folder
from scalespec.trainables.loop import Prepared, Trainer
from scalespec.trainables.rules import flops
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.worker")

MAX_DEATHS = 2
STALLED_EXIT = 75


@dataclass(frozen=True)
class Job:
    """One run of a pack, with what the driver knows of it."""

    spec: RunSpec
    counts: flops.Counts
    family_steps: tuple[int, ...]
    shares_trunk: bool

    def to_json(self) -> dict[str, Any]:
        counts, steps = asdict(self.counts), list(self.family_steps)
        return {"spec": self.spec.to_json(), "counts": counts, "family_steps": steps, "shares_trunk": self.shares_trunk}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        counts = flops.Counts(**data["counts"])
        return cls(RunSpec.from_json(data["spec"]), counts, tuple(data["family_steps"]), data["shares_trunk"])


def run_pack(config: Mapping[str, Any]) -> None:
    """The training function of Ray Train. `config`: root, session, threads, code_version and the jobs."""
    torch.set_num_threads(config["threads"])
    store, group = StudyStore(config["root"]), Group.current()
    prepared: dict[str, Prepared] = {}
    for job in (Job.from_json(data) for data in config["jobs"]):
        _run(job, store, group, prepared, config["session"], config["code_version"])


def _run(
    job: Job, store: StudyStore, group: Group, prepared: dict[str, Prepared], session: str, code_version: str | None
) -> None:
    spec = job.spec
    folder = store.run(spec.run_key)
    if group.agreed(int(group.rank == 0 and is_finished(folder, session))):
        return
    deaths = 0
    if group.rank == 0:
        dead = [claim for claim in folder.claims() if claim["session"] == session]
        deaths = len(dead)
        folder.claim(session)
    folder.facts = {"started_at": _first_claim(folder), "code_version": code_version, "session": session}
    if group.agreed(deaths) >= MAX_DEATHS:
        if group.rank == 0:
            fail(folder, job, _last_words(folder, dead) or "worker_died: its worker died twice")
        return
    try:
        with watched(spec.train.stall_timeout_s, folder) as beat:
            ready = _prepare(spec, prepared)
            ready.know(spec.width, job.counts)
            trunk = None
            if job.shares_trunk:
                trunk = store.family(spec.family_key)
                if group.rank == 0:
                    trunk.claim(session)
            Trainer(spec, ready, folder, trunk, job.family_steps, group, beat).run()
    except FencedError:
        raise
    except Exception as error:
        words = reason_of(error)
        log.exception("run %s: %s", spec.run_key, words)
        if group.world > 1:
            # the other workers wait in a collective: only a restart of the group brings them back
            _note(folder, words)
            raise
        fail(folder, job, words)


def _prepare(spec: RunSpec, prepared: dict[str, Prepared]) -> Prepared:
    key = json.dumps([spec.task, dict(spec.options), asdict(spec.data)], sort_keys=True)
    if key not in prepared:
        prepared[key] = Prepared.load(spec.task, spec.options, spec.data)
    return prepared[key]


def is_finished(folder: RunFolder, session: str) -> bool:
    """Whether a run has a result that stands: a failure of an earlier session is tried again."""
    result = folder.result()
    return result is not None and (result.get("status") != "failed" or result.get("session") == session)


def reason_of(error: BaseException) -> str:
    """The typed reason of `tables.ERROR_REASONS` and the error's own words."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        kind = "oom"
    elif isinstance(error, DataChangedError):
        kind = "data_changed"
    elif isinstance(error, OSError):
        kind = "storage"
    else:
        kind = "bug"
    text = str(error).strip() or "no message"
    return text if text.startswith(f"{kind}:") else f"{kind}: {type(error).__name__}: {text}"


def fail(folder: RunFolder, job: Job, error: str) -> None:
    """Commits a run as failed, with the counts that are known without training it."""
    counts, spec = job.counts, job.spec
    result = {
        "status": "failed",
        "error": error,
        "steps": 0,
        "samples": 0,
        "unique_samples": 0,
        "params_total": counts.params_total,
        "params_embedding": counts.params_embedding,
        "params_matmul": counts.params_matmul,
        **dict.fromkeys(("flops_train", "flops_6nd", "flops_matmul", "flops_causal"), 0.0),
        "flops_convention": flops.CONVENTION,
        **validation.val_columns(None),
        "train_loss_ema": None,
        "lr": scaled_optim(spec.optim).lr,
        "precision": spec.train.precision,
        "device": "unknown",
        "workers": spec.train.workers,
        "samples_per_s": None,
        "mfu": None,
        "duration_s": 0.0,
    }
    folder.finish(result, None)


def _first_claim(folder: RunFolder) -> float:
    return min((float(claim["time"]) for claim in folder.claims()), default=time.time())


def _note(folder: RunFolder, words: str) -> None:
    with contextlib.suppress(OSError):
        # only the first worker of a group has claimed, but any may have to speak
        attempt = folder.attempt or max((claim["attempt"] for claim in folder.claims()), default=1)
        path = f"{folder.folder}/{attempt_folder(attempt)}/{LAST_WORDS}"
        folder.files.write(path, json.dumps({"error": words}).encode())


def _last_words(folder: RunFolder, dead: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the latest of these attempts that left any: why its worker ended."""
    for claim in reversed(dead):
        with contextlib.suppress(OSError):
            found = read_json(folder.files, f"{folder.folder}/{attempt_folder(claim['attempt'])}/{LAST_WORDS}")
            if isinstance(found, dict) and "error" in found:
                return str(found["error"])
    return None


@contextlib.contextmanager
def watched(timeout_s: float, folder: RunFolder) -> Iterator[Any]:
    """Yields `beat`; where it is not called for `timeout_s`, the process ends and Ray restarts its group.

    A thread, so that it also ends a step that hangs in native code or in a collective whose peer is gone.
    """
    last = [time.monotonic()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(min(1.0, timeout_s / 4)):
            if time.monotonic() - last[0] > timeout_s:
                _note(folder, f"stalled: no step for {timeout_s:g} s (train.stall_timeout_s)")
                os._exit(STALLED_EXIT)

    def beat() -> None:
        last[0] = time.monotonic()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        done.set()
        thread.join()


def jobs_of(
    specs: Sequence[RunSpec], shares_trunk: bool, counts: Mapping[str, flops.Counts], steps: Sequence[int]
) -> list[Job]:
    """The jobs of one unit, smallest data fraction first, so that each extends the trunk of the one before."""
    ordered = sorted(specs, key=lambda spec: spec.data_fraction)
    return [Job(spec, counts[spec.run_key], tuple(steps), shares_trunk) for spec in ordered]
