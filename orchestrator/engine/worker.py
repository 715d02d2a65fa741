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
from scalespec.trainables.checkpoints import FencedError, RunFolder
from scalespec.trainables.errors import DataChangedError
from scalespec.trainables.evals import validation
from scalespec.trainables.family import FamilySchedule
from scalespec.trainables.group import Group
from scalespec.trainables.loop import Trainer
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.rules import flops
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.worker")

MAX_DEATHS = 2
STALLED_EXIT = 75
LAST_WORDS = "last_words.json"
"""In a run folder: why its worker ended, for the attempt that finds it dead."""


@dataclass(frozen=True)
class Job:
    """One run of a pack, with what the driver knows of it."""

    spec: RunSpec
    counts: flops.Counts
    trunk_kept: tuple[int, ...]
    """Steps at which some run of the family, finished ones included, wants the trunk's weights."""
    shares_trunk: bool

    def to_json(self) -> dict[str, Any]:
        counts, steps = asdict(self.counts), list(self.trunk_kept)
        return {"spec": self.spec.to_json(), "counts": counts, "trunk_kept": steps, "shares_trunk": self.shares_trunk}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        counts = flops.Counts(**data["counts"])
        return cls(RunSpec.from_json(data["spec"]), counts, tuple(data["trunk_kept"]), data["shares_trunk"])


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
        deaths = sum(claim.get("session") == session for claim in folder.claims())
        if not deaths:
            folder.files.delete(f"{folder.folder}/{LAST_WORDS}")
        folder.claim(session)
        folder.files.delete(f"{folder.folder}/result.json")
    facts = {"started_at": _first_claim(folder), "code_version": code_version, "session": session}
    if group.agreed(deaths) >= MAX_DEATHS:
        if group.rank == 0:
            fail(folder, job, _last_words(folder) or "worker_died: its worker died twice", facts)
        return
    recorder = Recorded(folder, facts)
    try:
        with watched(spec.train.stall_timeout_s, recorder) as beat:
            ready = _prepare(spec, prepared)
            ready.know(spec.width, job.counts)
            trunk = None
            if job.shares_trunk:
                trunk = store.family(spec.family_key)
                if group.rank == 0:
                    trunk.claim(session)
            Trainer(spec, ready, recorder, trunk, job.trunk_kept, group, beat).run()
    except FencedError:
        raise
    except Exception as error:
        words = reason_of(error)
        log.exception("run %s: %s", spec.run_key, words)
        if group.world > 1:
            # the other workers wait in a collective: only a restart of the group brings them back
            _note(folder, words)
            raise
        fail(folder, job, words, facts)


class Recorded(RunFolder):
    """A run folder that adds the facts of the attempt to the result."""

    def __init__(self, folder: RunFolder, facts: Mapping[str, Any]) -> None:
        super().__init__(folder.files, folder.folder, folder.codec)
        self.epoch, self.facts = folder.epoch, dict(facts)

    def finish(self, result: Mapping[str, Any], val: Any) -> None:
        super().finish({**result, **self.facts}, val)


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


def fail(folder: RunFolder, job: Job, error: str, facts: Mapping[str, Any]) -> None:
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
        **facts,
    }
    folder.finish(result, None)


def _first_claim(folder: RunFolder) -> float:
    return min((float(claim["time"]) for claim in folder.claims()), default=time.time())


def _note(folder: RunFolder, words: str) -> None:
    with contextlib.suppress(OSError):
        folder.files.write(f"{folder.folder}/{LAST_WORDS}", json.dumps({"error": words}).encode())


def _last_words(folder: RunFolder) -> str | None:
    try:
        return str(json.loads(folder.files.read(f"{folder.folder}/{LAST_WORDS}"))["error"])
    except (OSError, ValueError, KeyError):
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


def jobs_of(family: Sequence[RunSpec], schedule: FamilySchedule, counts: Mapping[str, flops.Counts]) -> list[Job]:
    """The jobs of a family, smallest data fraction first, so that each extends the trunk of the one before."""
    ordered = sorted(family, key=lambda spec: spec.data_fraction)
    return [Job(spec, counts[spec.run_key], schedule.trunk_kept, schedule.shares_trunk) for spec in ordered]
