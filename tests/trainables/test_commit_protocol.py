"""Attempts at one run that overlap, die, lose answers and go on writing after they were replaced, in any order.

Every attempt logs values that nobody else logs, and every state carries the curve that led to it. So whatever an attempt takes
over must agree, point by point, with what a reader sees at that moment: no point lost, none of a stranger.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from faulty import DeadError, Faults, FaultyFiles, MemoryFiles
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scalespec.trainables.checkpoints import FencedError, RunFolder
from scalespec.trainables.commits import read_committed
from scalespec.trainables.files import Files
from scalespec.trainables.io import Media, State

RUN = "runs/r"
WHERE = st.integers(1, 12)
KIND = st.sampled_from(Faults.KINDS)


@dataclass
class Worker:
    """A process with an attempt: what it believes the run to be."""

    folder: RunFolder
    step: int = 0
    acknowledged: int = 0
    """Step of the newest state that is its own or was taken over."""
    curve: dict[int, float] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    """Steps whose checkpoint was acknowledged."""
    finished: bool = False

    def model(self, step: int) -> float:
        """What a model is at a step: a function of the steps that led there."""
        return self.curve.get(step, 0.0)

    @property
    def mark(self) -> float:
        """What tells its values from those of others."""
        return 1000.0 * (self.folder.attempt or 0)


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = MemoryFiles()
        self.workers: list[Worker] = []
        self.all: dict[int, Worker] = {}
        """By attempt, the dead too."""
        self.saved: dict[tuple[int, int], Any] = {}
        """What was to be saved as the state of an attempt at a step."""
        self.raced = self.damaged = self.parts_damaged = False

    def reader(self) -> RunFolder:
        return RunFolder(self.files, RUN)

    # -- what a process does ------------------------------------------------------------------------------------------

    def start(self, files: Files) -> None:
        newest = self.all.get(max(self.reader().history().attempts, default=0))
        worker = Worker(RunFolder(files, RUN))
        try:
            worker.folder.claim("session")
        finally:
            self.register(worker)
        state = worker.folder.load_latest()
        assert (0 if state is None else state.step) == worker.step, "another state than its claim names"
        if state is not None:
            assert state.meta["curve"] == {str(step): value for step, value in worker.curve.items()}
        if newest is not None and not self.raced and not self.damaged:
            assert worker.step >= newest.acknowledged, "a state that was acknowledged is lost"
        seen = {row["step"]: row["value"] for row in worker.folder.metrics()}
        assert seen.items() <= worker.curve.items(), "points of a stranger"
        assert self.parts_damaged or seen == worker.curve, "points are lost"
        have = worker.folder.history().checkpoints
        for step, path in have.items():
            found = read_committed(self.files, path)
            assert found is None or _content(found[1]) == worker.model(step), "a checkpoint of a stranger"
        assert self.damaged or worker.kept <= set(have), "a checkpoint is lost"
        self.workers.append(worker)

    def register(self, worker: Worker) -> None:
        """A claim that is there is an attempt, whether or not its process has seen the answer."""
        for claim in self.reader().claims():
            if claim["attempt"] not in self.all:
                self.all[claim["attempt"]] = worker
                if (after := claim["after"]) is not None:
                    worker.step = worker.acknowledged = after["step"]
                    curve, kept = self.saved[after["attempt"], after["step"]]
                    worker.curve, worker.kept = dict(curve), set(kept)
                    self.saved[claim["attempt"], after["step"]] = curve, kept  # should it have to save it anew
        if worker.folder.attempt is not None:
            assert self.all[worker.folder.attempt] is worker, "one number, two attempts"

    def train(self, worker: Worker, steps: int, commits: list[str]) -> None:
        for _ in range(steps):
            worker.step += 1
            worker.curve[worker.step] = worker.mark + worker.step
            worker.folder.log(worker.step, worker.step, 1.0, {"train_loss": worker.curve[worker.step]})
        for commit in commits:
            if commit == "weights":
                tensors = {"w": torch.tensor([worker.model(worker.step)])}
                worker.folder.save_weights(worker.step, worker.step, 1.0, tensors, {})
                worker.kept.add(worker.step)
            elif commit == "media":
                worker.folder.save_media(worker.step, [Media("a", "text", b"x")])
            else:
                self.saved[worker.folder.attempt, worker.step] = (
                    dict(worker.curve),
                    set(worker.kept),
                )
                meta = {"curve": dict(worker.curve)}
                worker.folder.save_state(State(worker.step, {"w": torch.tensor([worker.mark])}, meta))
                worker.acknowledged = worker.step

    def finish(self, worker: Worker) -> None:
        worker.finished = True
        worker.folder.finish({"status": "done", "steps": worker.step, "attempt": worker.folder.attempt}, None)

    def attempt(self, worker: Worker | None, action: Callable[[], None], faults: Faults) -> None:
        """One action, with what goes wrong in it."""
        if worker is not None:
            worker.folder.files = FaultyFiles(self.files, faults)
        try:
            action()
        except DeadError:
            self.workers = [each for each in self.workers if each is not worker]
        except FencedError:
            assert worker is not None
            assert worker.folder.attempt != max(self.all), "the newest attempt is refused"
            self.workers.remove(worker)
        except OSError:
            pass  # it may try again, or go on
        if worker is not None and worker in self.workers:
            worker.folder.files = self.files

    # -- what happens -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.reader().result() is None and len(self.all) < 12)
    @rule(at=st.just(0) | WHERE, kind=KIND)
    def starts(self, at: int, kind: str) -> None:
        faults = Faults(at, kind)
        self.attempt(None, lambda: self.start(FaultyFiles(self.files, faults)), faults)
        if self.workers:
            self.workers[-1].folder.files = self.files

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), steps=st.integers(0, 2), at=st.just(0) | WHERE, kind=KIND)
    def trains(self, data: st.DataObject, steps: int, at: int, kind: str) -> None:
        worker = data.draw(st.sampled_from(self.workers), label="worker")
        commits = data.draw(st.lists(st.sampled_from(["weights", "media", "state"]), max_size=3), label="commits")
        if not worker.finished:
            self.attempt(worker, lambda: self.train(worker, steps, commits), Faults(at, kind))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), at=st.just(0) | WHERE, kind=KIND)
    def ends(self, data: st.DataObject, at: int, kind: str) -> None:
        worker = data.draw(st.sampled_from(self.workers), label="worker")
        self.attempt(worker, lambda: self.finish(worker), Faults(at, kind))

    @precondition(lambda self: self.workers and self.reader().result() is None and len(self.all) < 12)
    @rule(data=st.data(), at=WHERE, ends=st.booleans())
    def is_replaced_in_the_middle(self, data: st.DataObject, at: int, ends: bool) -> None:
        """Between two calls of a commit another attempt claims the run and commits: no look at the claims can rule it out."""
        worker = data.draw(st.sampled_from(self.workers), label="worker")
        if worker.finished:
            return
        faults = Faults(at)

        def replace() -> None:
            self.raced = True
            self.start(self.files)
            self.train(self.workers[-1], 1, ["weights", "state"])

        faults.interpose = replace
        action = (
            (lambda: self.finish(worker)) if ends else (lambda: self.train(worker, 1, ["state", "weights", "state"]))
        )
        self.attempt(worker, action, faults)

    @precondition(lambda self: self.workers and self.reader().result() is None and len(self.all) < 12)
    @rule(data=st.data(), at=WHERE, ends=st.booleans())
    def goes_on_while_it_is_replaced(self, data: st.DataObject, at: int, ends: bool) -> None:
        """Between two calls of a claim the attempt that it replaces commits, prunes, or finishes."""
        worker = data.draw(st.sampled_from(self.workers), label="worker")
        if worker.finished:
            return
        faults = Faults(at)

        def go_on() -> None:
            self.raced = True
            with contextlib.suppress(FencedError):
                for _ in range(3):
                    self.train(worker, 1, ["state"])
                if ends:
                    self.finish(worker)

        faults.interpose = go_on
        self.attempt(None, lambda: self.start(FaultyFiles(self.files, faults)), faults)

    @precondition(lambda self: self.files.files)
    @rule(data=st.data(), how=st.sampled_from(["cut", "flip", "empty", "json", "gone"]))
    def is_damaged(self, data: st.DataObject, how: str) -> None:
        path = data.draw(st.sampled_from(sorted(self.files.files)), label="path")
        old = self.files.files[path]
        if path.endswith("result.json") or not old or (how == "gone" and path.endswith("claim.json")):
            return
        new = {"cut": old[: len(old) // 2], "flip": bytes([old[0] ^ 1]) + old[1:], "empty": b"", "json": b"[3]"}.get(
            how
        )
        self.damaged = True
        self.parts_damaged |= "/metrics/" in path
        if new is None:
            del self.files.files[path]
        else:
            self.files.files[path] = new

    @rule(
        name=st.sampled_from(["e000001x/claim.json", "e99/claim.json", "notes", "e000001/step-1", "x/y", "e000002/tmp"])
    )
    def finds_something_foreign(self, name: str) -> None:
        self.files.write(f"{RUN}/{name}", b"?")

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def what_is_seen_is_one_attempts_belief(self) -> None:
        reader = self.reader()
        seen = reader.history()
        if not seen.attempts:
            return
        owner, result = self.all[seen.attempts[-1]], reader.result()
        points = {row["step"]: row["value"] for row in reader.metrics()}
        assert points.items() <= owner.curve.items()
        for step, path in seen.checkpoints.items():
            found = read_committed(self.files, path)
            assert self.damaged or found is not None
            assert found is None or _content(found[1]) == owner.model(step)
        if result is not None:
            assert result["attempt"] == seen.attempts[-1]
            assert owner.finished
            assert self.parts_damaged or points == owner.curve
        elif not self.damaged:
            assert all(step in points for step in range(1, owner.acknowledged + 1))


def _content(files: dict[str, bytes]) -> float:
    data = files["model.safetensors"]
    header = 8 + int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8:header])["w"]["data_offsets"]
    return float(torch.frombuffer(bytearray(data[header + start : header + stop]), dtype=torch.float32)[0])


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
