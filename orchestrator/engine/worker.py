"""What each worker of a lane does with a unit: its runs, one after another, each to a committed result.

A worker group that Ray restarts comes back here: finished runs are passed over, the others go on from their own states. A run
that has killed its worker twice in one session is `failed`, and the lane goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from scalespec.orchestrator.store.folder import StudyStore
from scalespec.trainables.checkpoints import FencedError, RunFolder
from scalespec.trainables.commits import read_json
from scalespec.trainables.errors import DataChangedError
from scalespec.trainables.evals import validation
from scalespec.trainables.group import Group
from scalespec.trainables.history import LAST_WORDS, attempt_folder
from scalespec.trainables.io import State
from scalespec.trainables.loop import Trainer
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.rules import flops
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.worker")

MAX_DEATHS = 2
STALLED_EXIT = 75


@dataclass(frozen=True)
class Job:
    """One run of a unit, with what the driver knows of it."""

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


Tell = Callable[[str, str], None]
"""(folder, what): word to the driver that something was committed there; what: claim | commit | result."""

TELL_S = 1.0
"""A word costs the lane and the queue a millisecond each. One that is not sent comes with the next, or the driver's next sweep."""


@dataclass
class Worker:
    """This process, or this rank of a group, and what its runs share."""

    store: StudyStore
    session: str
    code_version: str | None
    group: Group = field(default_factory=Group.current)
    tell: Tell = lambda folder, what: None
    _prepared: dict[str, Prepared] = field(default_factory=dict)

    def run(self, jobs: Iterable[Job]) -> None:
        """The runs of a unit, one after another, each to a committed result. What is finished is passed over."""
        for job in jobs:
            self._run(job)

    def _run(self, job: Job) -> None:
        spec, group, session = job.spec, self.group, self.session
        folder = Recorded(self.store.run(spec.run_key), self.tell)
        if group.agreed(int(group.rank == 0 and is_finished(folder, session))):
            # an orphan of a killed driver may have finished it after this driver's first look
            if group.rank == 0:
                self.tell(folder.folder, "result")
            return
        deaths = 0
        if group.rank == 0:
            dead = [claim for claim in folder.claims() if claim["session"] == session]
            deaths = len(dead)
            self.store.write_spec(spec)
            folder.claim(session)
        folder.facts = {
            "started_at": _first_claim(folder),
            "code_version": self.code_version,
            "session": session,
        }
        if group.agreed(deaths) >= MAX_DEATHS:
            if group.rank == 0:
                fail(folder, job, _last_words(folder, dead) or "worker_died: its worker died twice")
            return
        try:
            self._train(job, folder)
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

    def _train(self, job: Job, folder: Recorded) -> None:
        spec = job.spec
        with watched(spec.train.stall_timeout_s, folder) as beat:
            ready = self._prepare(spec)
            ready.know(spec.width, job.counts)
            trunk = None
            if job.shares_trunk:
                trunk = self.store.family(spec.family_key)
                if self.group.rank == 0:
                    trunk.claim(self.session)
            Trainer(spec, ready, folder, trunk, job.trunk_kept, self.group, beat).run()

    def _prepare(self, spec: RunSpec) -> Prepared:
        key = json.dumps([spec.task, dict(spec.options), asdict(spec.data)], sort_keys=True)
        if key not in self._prepared:
            self._prepared[key] = Prepared.load(spec.task, spec.options, spec.data)
        return self._prepared[key]


class Recorded(RunFolder):
    """A run folder that tells what it commits, once a second where commits follow each other faster."""

    def __init__(self, folder: RunFolder, tell: Tell) -> None:
        super().__init__(folder.files, folder.folder, folder.codec)
        self._tell, self._told = tell, -math.inf

    def _committed(self) -> None:
        if time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            self._tell(self.folder, "commit")

    def claim(self, session: str) -> int:
        number = super().claim(session)
        self._tell(self.folder, "claim")
        return number

    def save_state(self, state: State, *, keep: bool = False) -> None:
        super().save_state(state, keep=keep)
        self._committed()

    def save_weights(self, *arguments: Any, **named: Any) -> None:
        super().save_weights(*arguments, **named)
        self._committed()

    def adopt(self, *arguments: Any, **named: Any) -> None:
        super().adopt(*arguments, **named)
        self._committed()

    def finish(self, result: Mapping[str, Any], val: Any) -> None:
        super().finish(result, val)
        self._tell(self.folder, "result")


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
