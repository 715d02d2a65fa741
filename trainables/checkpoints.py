"""Committed run folders: a `RunIO` over any file store, with the local disk as the store for torchrun and plain Python.

A commit is a set of whole files and, last, a `manifest.json` with their sizes and sha256 (for a run: `result.json`). Readers
trust only what a manifest vouches for. Every attempt at a run takes a create-only claim, and a commit under an older claim is
refused: a worker that was cut off from its cluster but not from the storage can't write beside its replacement.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
from torch import Tensor

from scalespec.trainables.io import Media, State, ValRows

STATES_KEPT = 2
WEIGHTS, STATE, MANIFEST, RESULT, SPEC = (
    "model.safetensors",
    "state.safetensors",
    "manifest.json",
    "result.json",
    "spec.json",
)

MEDIA = {"image": "png", "text": "txt", "table": "json"}
"""Kind of a medium → ending of its file."""

Row = dict[str, Any]
"""One metric point: step, samples, flops, metric, value, time_ms."""


class FencedError(RuntimeError):
    """A newer attempt has claimed this run; this one must stop writing."""


class DamagedError(RuntimeError):
    """A trunk's checkpoint that does not match its manifest."""

    def __init__(self, path: str, step: int) -> None:
        super().__init__(f"{path}: missing, truncated or altered")
        self.step = step


class Files(Protocol):
    """The few operations that commits need, with paths relative to one root."""

    def write(self, path: str, data: bytes) -> None:
        """Makes the whole file visible at once."""
        ...

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Writes only where nothing is yet; False if something is."""
        ...

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder; none where the folder is absent."""
        ...

    def delete(self, path: str) -> None:
        """Removes a file or a tree; absent is fine."""
        ...


class LocalFiles:
    """A folder on a POSIX disk: temporary name, fsync, rename."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would shut out the group that shares the storage
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except NotADirectoryError as error:  # a file stands where a folder should
            raise FileNotFoundError(*error.args) from error

    def create(self, path: str, data: bytes) -> bool:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.link(temporary, target)  # link fails where the name exists, and never shows a half-written claim
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith(".tmp-"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, path: str) -> None:
        target = self.root / path
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)


class Codec(Protocol):
    """How rows become files; the orchestrator's is Parquet."""

    suffix: str

    def encode_metrics(self, rows: Sequence[Row]) -> bytes: ...

    def decode_metrics(self, data: bytes) -> list[Row]: ...

    def encode_val(self, val: ValRows) -> bytes: ...


class JsonCodec:
    """One JSON object a line: no dependency, readable anywhere."""

    suffix = "jsonl"

    def encode_metrics(self, rows: Sequence[Row]) -> bytes:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def decode_metrics(self, data: bytes) -> list[Row]:
        return [json.loads(line) for line in data.decode().splitlines()]

    def encode_val(self, val: ValRows) -> bytes:
        correct = np.full(len(val.loss), np.nan) if val.correct is None else val.correct
        rows = (
            {
                "example_id": i,
                "half": "select" if s else "report",
                "loss": float(x),
                "correct": None if np.isnan(c) else float(c),
            }
            for i, (x, c, s) in enumerate(zip(val.loss, correct, val.select, strict=True))
        )
        return "".join(json.dumps(row) + "\n" for row in rows).encode()


def manifest(files: Mapping[str, bytes], **facts: Any) -> bytes:
    """The commit record of a set of files."""
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return json.dumps({"schema_version": 1, **facts, "files": entries}, indent=1).encode()


def step_folder(step: int) -> str:
    """`step-00001234`."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a name such as `step-00001234` or `part-00001234.parquet`; None for other names."""
    digits = name.partition("-")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else None


class RunFolder:
    """`RunIO` in one folder of a file store: a run, or a family's trunk (whose kept states lie beside `resume/`)."""

    def __init__(self, files: Files, folder: str, codec: Codec | None = None) -> None:
        self.files, self.folder, self.codec = files, folder, codec or JsonCodec()
        self.epoch: int | None = None
        self._rows: list[Row] = []

    # -- attempts -----------------------------------------------------------------------------------------------------

    def claims(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first."""
        out = []
        for name in self.files.names(f"{self.folder}/claims"):
            with contextlib.suppress(ValueError, FileNotFoundError):
                out.append(json.loads(self.files.read(f"{self.folder}/claims/{name}")))
        return out

    def claim(self, session: str) -> int:
        """Takes the next attempt number; older attempts can commit nothing from here on."""
        names = self.files.names(f"{self.folder}/claims")
        epoch = int(names[-1]) if names else 0
        fact = {"session": session, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        while True:
            epoch += 1
            if self.files.create(f"{self.folder}/claims/{epoch:06d}", json.dumps(fact).encode()):
                self.epoch = epoch
                return epoch

    def _check_fence(self) -> None:
        if self.epoch is None:
            return
        names = self.files.names(f"{self.folder}/claims")
        if names and int(names[-1]) > self.epoch:
            raise FencedError(f"{self.folder}: attempt {int(names[-1])} has replaced attempt {self.epoch}")

    # -- commits ------------------------------------------------------------------------------------------------------

    def log(self, step: int, samples: int, flops: float, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        point = {"step": step, "samples": samples, "flops": flops}
        self._rows += [
            {**point, "metric": name, "value": float(value), "time_ms": now} for name, value in metrics.items()
        ]

    def save_state(self, state: State, *, keep: bool = False) -> None:
        self._check_fence()
        self._commit_metrics(state.step)
        files = {STATE: safetensors.torch.save({k: v.contiguous() for k, v in state.tensors.items()})}
        parent = self.folder if keep else f"{self.folder}/resume"
        self._commit(f"{parent}/{step_folder(state.step)}", files, step=state.step, meta=dict(state.meta))
        for step, path in self._states()[:-STATES_KEPT]:
            if path.startswith(f"{self.folder}/resume/") and step < state.step:
                self.files.delete(path)

    def save_weights(
        self, step: int, samples: int, flops: float, weights: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        self._check_fence()
        files = {WEIGHTS: safetensors.torch.save({k: v.contiguous() for k, v in weights.items()}, {"step": str(step)})}
        facts = {"step": step, "samples": samples, "flops": flops, "metrics": dict(metrics)}
        self._commit(f"{self.folder}/checkpoints/{step_folder(step)}", files, **facts)

    def save_media(self, step: int, media: Sequence[Media]) -> None:
        self._check_fence()
        files = {f"{item.name}.{MEDIA[item.kind]}": item.data for item in media}
        kinds = {f"{item.name}.{MEDIA[item.kind]}": item.kind for item in media}
        self._commit(f"{self.folder}/media/{step_folder(step)}", files, step=step, kinds=kinds)

    def finish(self, result: Mapping[str, Any], val: ValRows | None) -> None:
        self._check_fence()
        self._commit_metrics(int(result["steps"]))
        if val is not None:
            self.files.write(f"{self.folder}/val.{self.codec.suffix}", self.codec.encode_val(val))
        self.files.write(f"{self.folder}/{RESULT}", json.dumps(dict(result), indent=1, allow_nan=False).encode())
        self.files.delete(f"{self.folder}/resume")

    def _commit(self, folder: str, files: Mapping[str, bytes], **facts: Any) -> None:
        for name, data in files.items():
            self.files.write(f"{folder}/{name}", data)
        self.files.write(f"{folder}/{MANIFEST}", manifest(files, **facts))

    def _commit_metrics(self, step: int) -> None:
        if self._rows:
            self.files.write(
                f"{self.folder}/metrics/part-{step:08d}.{self.codec.suffix}", self.codec.encode_metrics(self._rows)
            )
            self._rows = []

    # -- reading back -------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any] | None:
        """The committed result, or None."""
        try:
            found = json.loads(self.files.read(f"{self.folder}/{RESULT}"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def metrics(self) -> list[Row]:
        """All committed points and those still in memory, one a (step, metric), by step."""
        rows: list[Row] = []
        for name in self.files.names(f"{self.folder}/metrics"):
            rows += self.codec.decode_metrics(self.files.read(f"{self.folder}/metrics/{name}"))
        seen: dict[tuple[int, str], Row] = {}
        for row in rows + self._rows:
            seen.setdefault((row["step"], row["metric"]), row)
        return sorted(seen.values(), key=lambda row: (row["step"], row["metric"]))

    def _states(self) -> list[tuple[int, str]]:
        out = []
        for parent in (self.folder, f"{self.folder}/resume"):
            for name in self.files.names(parent):
                step = step_of(name) if name.startswith("step-") else None
                if step is not None:
                    out.append((step, f"{parent}/{name}"))
        return sorted(out)

    def load_latest(self, at_most: int | None = None) -> State | None:
        for step, path in reversed(self._states()):
            if at_most is None or step <= at_most:
                found = read_committed(self.files, path)
                if found is not None:
                    facts, files = found
                    return State(step, safetensors.torch.load(files[STATE]), facts["meta"])
        return None

    def rewind(self, step: int) -> None:
        """Drops metric parts and states newer than `step`: what an attempt that died had begun but not committed."""
        for name in self.files.names(f"{self.folder}/metrics"):
            if (step_of(name) or 0) > step:
                self.files.delete(f"{self.folder}/metrics/{name}")
        for state_step, path in self._states():
            if state_step > step:
                self.files.delete(path)

    def checkpoint_steps(self) -> list[int]:
        folder = f"{self.folder}/checkpoints"
        steps = (step_of(name) for name in self.files.names(folder) if MANIFEST in self.files.names(f"{folder}/{name}"))
        return [step for step in steps if step is not None]

    def adopt(self, trunk: RunFolder, step: int, checkpoint_steps: Sequence[int]) -> None:
        self._check_fence()
        own, at_checkpoints = set(checkpoint_steps), set[str]()
        for at in checkpoint_steps:
            path = f"checkpoints/{step_folder(at)}"
            facts = self._copy(trunk, path)
            if facts is None:
                trunk.files.delete(f"{trunk.folder}/{path}")
                raise DamagedError(f"{trunk.folder}/{path}", at)
            at_checkpoints |= set(facts["metrics"])
        kept_by_others = set(trunk.checkpoint_steps()) - own
        for name in trunk.files.names(f"{trunk.folder}/media"):
            at_step = step_of(name)
            if at_step is not None and at_step <= step and at_step not in kept_by_others:
                self._copy(trunk, f"media/{name}")
        # the trunk is evaluated where any run of the family wants it; this run's curve has its own points only. The rows
        # wait in memory for the next commit: a part of its own here would be overwritten where the run ends at this step
        rows = (row for row in trunk.metrics() if row["step"] <= step)
        self._rows = [row for row in rows if row["metric"] not in at_checkpoints or row["step"] in own]

    def _copy(self, other: RunFolder, path: str) -> dict[str, Any] | None:
        """Commits here what another folder has committed at `path`. Returns its manifest; None where it is not valid."""
        found = read_committed(other.files, f"{other.folder}/{path}")
        if found is None:
            return None
        for name, data in found[1].items():
            self.files.write(f"{self.folder}/{path}/{name}", data)
        self.files.write(f"{self.folder}/{path}/{MANIFEST}", other.files.read(f"{other.folder}/{path}/{MANIFEST}"))
        return found[0]


def read_committed(files: Files, folder: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """The manifest and the files of a commit, or None where it is incomplete, truncated or altered."""
    try:
        facts = json.loads(files.read(f"{folder}/{MANIFEST}"))
        contents = {name: files.read(f"{folder}/{name}") for name in facts["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for name, data in contents.items():
        entry = facts["files"][name]
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            return None
    return facts, contents


def local_run(folder: str | os.PathLike[str]) -> RunFolder:
    """A run in a folder of the local disk, for torchrun and plain Python."""
    path = Path(folder)
    return RunFolder(LocalFiles(path.parent), path.name)
