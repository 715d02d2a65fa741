"""Committed run folders: a `RunIO` over any file store, with the local disk as the store for torchrun and plain Python.

A commit is a set of whole files and, last, a `manifest.json` with their sizes and sha256 (for a run: `result.json`). Readers
trust only what a manifest vouches for. Every attempt at a run commits below a folder of its own, which it takes by a create-only
claim; `trainables.history` says what counts of older ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
from torch import Tensor

from scalespec.trainables.commits import manifest, read_committed, read_manifest
from scalespec.trainables.files import Files, LocalFiles
from scalespec.trainables.history import (
    CLAIM,
    MANIFEST,
    RESULT,
    STATE,
    WEIGHTS,
    History,
    StatePath,
    attempt_folder,
    attempt_of,
    before,
    history,
    step_folder,
)
from scalespec.trainables.io import Media, State, ValRows
from scalespec.trainables.record import Codec, Row, RunRecord

STATES_KEPT = 2

MEDIA = {"image": "png", "text": "txt", "table": "json"}
"""Kind of a medium → ending of its file."""


class FencedError(RuntimeError):
    """A newer attempt has claimed this run; this one must stop writing."""


class DamagedError(RuntimeError):
    """A trunk's checkpoint that does not match its manifest."""

    def __init__(self, path: str, step: int) -> None:
        super().__init__(f"{path}: missing, truncated or altered")
        self.step = step


class RunFolder(RunRecord):
    """`RunIO`: an attempt at a run, which commits below a folder of its own. Without a claim it may read; its first commit takes one."""

    def __init__(self, files: Files, folder: str, codec: Codec | None = None) -> None:
        super().__init__(files, folder, codec)
        self.facts: dict[str, Any] = {}
        """What the result says beside what the loop knows."""
        self._rows: list[Row] = []
        self._part: tuple[int, list[Row]] = (-1, [])
        self._resume: list[StatePath] = []
        self._held: dict[StatePath, State] = {}
        """The state that the claim took over, read already, until it is asked for."""

    # -- attempts -----------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The folder of this attempt."""
        assert self.attempt is not None, "claim first"
        return f"{self.folder}/{attempt_folder(self.attempt)}"

    def claim(self, session: str) -> int:
        """Takes the next attempt number, going on from the newest valid state; nothing that older attempts write later counts."""
        self.attempt, self._part = None, (-1, [])
        while True:
            paths = self.files.walk(self.folder)
            newest, last = self._deciding(paths)
            states = history(paths, {newest: last}, f"{self.folder}/").states
            found = next(((at, state) for at in reversed(states) if (state := self._state(at)) is not None), None)
            number = 1 + max((attempt_of(path.partition("/")[0]) or 0 for path in paths), default=0)
            claim = {"attempt": number, "session": session, "host": socket.gethostname(), "pid": os.getpid()}
            # the token tells two writers apart where a store answers a retried create
            claim |= {"time": time.time(), "token": uuid.uuid4().hex, "after": None, "before": {}}
            if found is not None:
                step = found[0].step
                bounds = {newest: step, **before(last)}
                claim["after"] = {"attempt": found[0].attempt, "step": step}
                claim["before"] = {str(attempt): min(step, bounds[attempt]) for attempt in sorted(bounds)}
            if self.files.create(f"{self.folder}/{attempt_folder(number)}/{CLAIM}", json.dumps(claim).encode()):
                self.attempt = number
                self._resume = [at for at in states if "/resume/" in at.path]
                self._held = {} if found is None else dict([found])
                if (
                    found is not None
                    and "/resume/" in found[0].path
                    and read_manifest(self.files, found[0].path) is None
                ):
                    self.save_state(found[1])  # its owner went on, and pruned it before it saw this claim
                return number

    def _begin(self) -> None:
        """Before a commit: stops an attempt that has been replaced. What it commits would not count anyway."""
        if self.attempt is None:
            self.claim("")
            return
        for number in reversed(self._numbers()):
            if number <= self.attempt:
                return
            with contextlib.suppress(FileNotFoundError):  # a claimant that died before its claim
                self.files.read(f"{self.folder}/{attempt_folder(number)}/{CLAIM}")
                raise FencedError(f"{self.folder}: attempt {number} has replaced attempt {self.attempt}")

    # -- commits ------------------------------------------------------------------------------------------------------

    def log(self, step: int, samples: int, flops: float, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        point = {"step": step, "samples": samples, "flops": flops}
        self._rows += [
            {**point, "metric": name, "value": float(value), "time_ms": now} for name, value in metrics.items()
        ]

    def save_state(self, state: State, *, keep: bool = False) -> None:
        self._begin()
        self._commit_metrics(state.step)
        files = {STATE: safetensors.torch.save({k: v.contiguous() for k, v in state.tensors.items()})}
        path = f"{self.path}/{step_folder(state.step)}" if keep else f"{self.path}/resume/{step_folder(state.step)}"
        self._commit(path, files, {"step": state.step, "meta": dict(state.meta)})
        if not keep:
            assert self.attempt is not None
            self._resume = sorted({*self._resume, StatePath(state.step, self.attempt, path)})
        if pruned := [old for old in self._resume[:-STATES_KEPT] if old.step < state.step]:
            self._begin()  # once more: a successor may have taken over one of them meanwhile
            for old in pruned:
                self.files.delete(old.path)
                self._resume.remove(old)

    def save_weights(
        self, step: int, samples: int, flops: float, weights: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        self._begin()
        tensors = {name: value.contiguous() for name, value in weights.items()}
        files = {WEIGHTS: safetensors.torch.save(tensors, {"step": str(step)})}
        facts = {"step": step, "samples": samples, "flops": flops, "metrics": dict(metrics)}
        self._commit(f"{self.path}/checkpoints/{step_folder(step)}", files, facts, {WEIGHTS: tensors})

    def save_media(self, step: int, media: Sequence[Media]) -> None:
        self._begin()
        files = {f"{item.name}.{MEDIA[item.kind]}": item.data for item in media}
        kinds = {f"{item.name}.{MEDIA[item.kind]}": item.kind for item in media}
        self._commit(f"{self.path}/media/{step_folder(step)}", files, {"step": step, "kinds": kinds})

    def finish(self, result: Mapping[str, Any], val: ValRows | None) -> None:
        last = json.dumps({**result, **self.facts}, indent=1, allow_nan=False).encode()
        self._begin()
        self._commit_metrics(int(result["steps"]))
        if val is not None:
            self.files.write(f"{self.path}/val.{self.codec.suffix}", self.codec.encode_val(val))
        # the first result of an attempt stands: one whose answer was lost is not replaced by the failure to see it
        self.files.create(f"{self.path}/{RESULT}", last)
        self._begin()  # once more: the result of an attempt that was replaced meanwhile is none, and its states are needed
        if result.get("status") != "failed":  # a failed run is tried again, from its last state
            with contextlib.suppress(OSError):
                self._drop_states()

    def _drop_states(self) -> None:
        for number in self._numbers():
            if number <= (self.attempt or 0):
                self.files.delete(f"{self.folder}/{attempt_folder(number)}/resume")

    def adopt(self, trunk: RunFolder, step: int, checkpoint_steps: Sequence[int]) -> None:
        self._begin()
        have, own, at_checkpoints = trunk.history(), set(checkpoint_steps), set[str]()
        for at in checkpoint_steps:
            source = have.checkpoints.get(at)
            facts = None if source is None else self._copy(trunk, source, f"checkpoints/{step_folder(at)}")
            if facts is None:
                if source is not None:
                    trunk.files.delete(source)  # so that the trunk lacks it, and makes it again
                raise DamagedError(source or f"{trunk.folder}: checkpoint {at}", at)
            at_checkpoints |= set(facts["metrics"])
        for at, source in have.media.items():
            if at <= step and (at in own or at not in have.checkpoints):
                self._copy(trunk, source, f"media/{step_folder(at)}")
        # the trunk is evaluated where any run of the family wants it; this run's curve has its own points only
        rows = (row for row in trunk.metrics(have) if row["step"] <= step)
        self._rows += [row for row in rows if row["metric"] not in at_checkpoints or row["step"] in own]
        self._commit_metrics(step)

    def _copy(self, other: RunFolder, source: str, path: str) -> dict[str, Any] | None:
        """Commits here what another folder has committed. Returns its manifest; None where it is not valid."""
        found = read_committed(other.files, source)
        if found is None:
            return None
        for name, data in found[1].items():
            self.files.write(f"{self.path}/{path}/{name}", data)
        self.files.write(f"{self.path}/{path}/{MANIFEST}", json.dumps(found[0], indent=1).encode())
        return found[0]

    def _commit(
        self,
        folder: str,
        files: Mapping[str, bytes],
        facts: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        for name, data in files.items():
            self.files.write(f"{folder}/{name}", data)
        self.files.write(f"{folder}/{MANIFEST}", manifest(files, facts, tensors))

    def _commit_metrics(self, step: int) -> None:
        """A part is named after the last step that it holds or follows; it is whole or absent."""
        if self._rows:
            step = max(step, *(row["step"] for row in self._rows))
            rows = (self._part[1] if self._part[0] == step else []) + self._rows
            path = f"{self.path}/metrics/part-{step:08d}.{self.codec.suffix}"
            self.files.write(path, self.codec.encode_metrics(rows))
            self._part, self._rows = (step, rows), []

    # -- reading back -------------------------------------------------------------------------------------------------

    def metrics(self, seen: History | None = None) -> list[Row]:
        """All points that count, and those still in memory."""
        rows = [*super().metrics(seen), *self._rows]
        points = {(row["step"], row["metric"]): row for row in rows}
        return [points[key] for key in sorted(points)]

    def load_latest(self, at_most: int | None = None) -> State | None:
        """As of the record; the state that the claim took over is in memory already."""
        held, self._held = dict(self._held), {}
        for at in sorted({*self.history().states, *held}, reverse=True):
            if (at_most is None or at.step <= at_most) and (found := held.get(at) or self._state(at)) is not None:
                return found
        return None


def local_run(folder: str | os.PathLike[str]) -> RunFolder:
    """A run in a folder of the local disk, for torchrun and plain Python."""
    path = Path(folder)
    return RunFolder(LocalFiles(path.parent), path.name)
