"""Every commit, killed or failed at every call that it makes: nothing that was committed is lost, nothing half is seen.

The calls are those of `Files` (for any store) and those of the system below the local disk's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import DeadError, Faults, FaultyFiles, FaultySystem

from scalespec.trainables import files as local
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.commits import manifest, read_committed
from scalespec.trainables.files import Files, LocalFiles
from scalespec.trainables.io import Media, State, ValRows

END = 6
RUN, TRUNK = "runs/r", "families/f"


def logged(folder: RunFolder, first: int, last: int) -> None:
    for step in range(first, last + 1):
        folder.log(step, step, 1.0, {"train_loss": 100.0 + step})


def state(step: int) -> State:
    return State(step, {"w": torch.full((3,), float(step))}, {})


def weights(folder: RunFolder, step: int) -> None:
    folder.save_weights(step, step, 1.0, {"w": torch.full((3,), float(step))}, {})


def media(folder: RunFolder, step: int) -> None:
    folder.save_media(step, [Media("a", "text", b"%d" % step), Media("b", "text", b"%d" % step)])


def finish(folder: RunFolder) -> None:
    rows = ValRows(np.ones(2), np.ones(2), np.array([True, False]))
    folder.finish({"status": "done", "steps": END}, rows)


def prepare(files: Files) -> None:
    """An attempt that died after step 3, its states at 2 and 3, and a trunk with a state and a checkpoint at 4."""
    run = RunFolder(files, RUN)
    run.claim("first")
    weights(run, 0)
    for step in (1, 2, 3):
        logged(run, step, step)
        run.save_state(state(step))
    media(run, 3)
    trunk = RunFolder(files, TRUNK)
    trunk.claim("first")
    logged(trunk, 1, 4)
    weights(trunk, 4)
    trunk.save_state(state(4), keep=True)


def resumed(files: Files, folder: str = RUN) -> tuple[RunFolder, int]:
    run = RunFolder(files, folder)
    run.claim("second")
    last = run.load_latest()
    assert last is not None
    assert last.tensors["w"].tolist() == [float(last.step)] * 3
    return run, last.step


def commit_state(files: Files) -> None:
    run, step = resumed(files)
    for at in range(step + 1, END):
        logged(run, at, at)
        run.save_state(state(at))


def commit_weights(files: Files) -> None:
    weights(resumed(files)[0], 3)


def commit_media(files: Files) -> None:
    media(resumed(files)[0], 3)


def commit_end(files: Files) -> None:
    run, step = resumed(files)
    logged(run, step + 1, END)
    weights(run, END)
    finish(run)


def commit_trunk(files: Files) -> None:
    trunk, step = resumed(files, TRUNK)
    if step < 5:
        logged(trunk, 5, 5)
        weights(trunk, 5)
        trunk.save_state(state(5), keep=True)


def commit_adopted(files: Files) -> None:
    RunFolder(files, "runs/branch").adopt(RunFolder(files, TRUNK), 4, [4])


def commit_ask(files: Files) -> None:
    """What is numbered by create-only files: the log of asks, and leases."""
    number = 1 + max((int(name[:6]) for name in files.names("asks")), default=0)
    files.create(f"asks/{number:06d}.json", b'{"points": [1, 2]}')


COMMITS: dict[str, Callable[[Files], object]] = {
    "claim": resumed,
    "metrics and state": commit_state,
    "weights": commit_weights,
    "media": commit_media,
    "finish": commit_end,
    "kept state": commit_trunk,
    "adopt": commit_adopted,
    "ask": commit_ask,
}


PRESENT: dict[str, Callable[[Files], bool]] = {
    "claim": lambda files: RunFolder(files, RUN).claims()[-1]["after"] == {"attempt": 1, "step": 3},
    "metrics and state": lambda files: RunFolder(files, RUN).history().states[-1].step == END - 1,
    "weights": lambda files: 3 in RunFolder(files, RUN).checkpoint_steps(),
    "media": lambda files: "e000002" in RunFolder(files, RUN).history().media[3],
    "finish": lambda files: RunFolder(files, RUN).result() is not None,
    "kept state": lambda files: RunFolder(files, TRUNK).history().states[-1].step == 5,
    "adopt": lambda files: RunFolder(files, "runs/branch").checkpoint_steps() == [4],
    "ask": lambda files: files.names("asks") == ["000001.json"],
}


def violations(files: Files) -> list[str]:
    """What a reader must never see."""
    out = []
    for folder in (RUN, TRUNK, "runs/branch"):
        run = RunFolder(files, folder)
        seen = run.history()
        for step, path in seen.checkpoints.items():
            found = read_committed(files, path)
            if found is None or found[0]["step"] != step:
                out.append(f"{path}: visible but not whole")
        out += [f"{path}: visible but not whole" for path in seen.media.values() if read_committed(files, path) is None]
        steps = [row["step"] for row in run.read_parts(seen.metric_parts)]
        if steps != list(range(1, len(steps) + 1)):
            out.append(f"{folder}: points {steps}")
        if any(".tmp-" in path for path in files.walk(folder)):
            out.append(f"{folder}: a write under way is listed")
    run = RunFolder(files, RUN)
    if 0 not in run.checkpoint_steps() or 4 not in RunFolder(files, TRUNK).checkpoint_steps():
        out.append("a checkpoint is lost")
    if run.result() not in (None, {"status": "done", "steps": END}):
        out.append(f"result {run.result()}")
    if run.result() is None:
        found = run.load_latest()
        if found is None or found.step < 3 or found.tensors["w"][0] != found.step:
            out.append("the state is lost")
        if len(run.metrics()) < 3:
            out.append("points are lost")
    elif [row["step"] for row in run.metrics()] != list(range(1, END + 1)) or run.history().val_path is None:
        out.append("a result before what it stands for")
    if any(files.read(f"asks/{name}") != b'{"points": [1, 2]}' for name in files.names("asks")):
        out.append("half an ask")
    return out


def recover(files: Files, commit: Callable[[Files], object]) -> list[str]:
    """The same again, and then the run to its end; what is finished is left alone."""
    if RunFolder(files, RUN).result() is None:
        commit(files)
    if RunFolder(files, RUN).result() is None:
        commit_end(files)
    out = violations(files)
    if RunFolder(files, RUN).result() is None:
        out.append("not finished")
    return out


def try_fault(
    folder: Path, name: str, at: int, kind: str, system: bool, patch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """Calls made, and what was violated. at=0: no fault."""
    files, faults, commit = LocalFiles(folder), Faults(at, kind), COMMITS[name]
    prepare(files)
    found = []
    with patch.context() as patched, contextlib.suppress(DeadError, OSError):
        if system:
            patched.setattr(local, "os", FaultySystem(faults))
        commit(files if system else FaultyFiles(files, faults))
        faults.at = 0
        if not PRESENT[name](files):
            found.append("it returned, but it is not there")
    return faults.count, found + violations(files) + recover(files, commit)


@pytest.mark.parametrize("system", [False, True], ids=["files", "system"])
@pytest.mark.parametrize("name", COMMITS)
def test_a_fault_at_any_call_costs_nothing_that_was_committed(tmp_path, monkeypatch, name, system):
    monkeypatch.setattr(
        "os.fsync", lambda handle: None
    )  # a fault may still stand in its place; a real one takes its time
    calls, found = try_fault(tmp_path / "whole", name, 0, "", system, monkeypatch)
    assert not found
    assert calls >= 2
    bad = {}
    for kind in Faults.KINDS:
        for at in range(1, calls + 1):
            _, found = try_fault(tmp_path / f"{kind}-{at}", name, at, kind, system, monkeypatch)
            if found:
                bad[kind, at] = found
    print(f"{name}: {calls} calls, {len(Faults.KINDS) * calls} faults, {len(bad)} violations")
    assert not bad


def test_the_oracle_sees_a_protocol_that_is_wrong(tmp_path, monkeypatch):
    """A manifest that goes first is found."""

    def manifest_first(self, folder, files, facts, tensors=None):
        for name, data in [("manifest.json", manifest(files, facts)), *files.items()]:
            self.files.write(f"{folder}/{name}", data)

    monkeypatch.setattr(RunFolder, "_commit", manifest_first)
    found = []
    for at in range(1, 20):
        found += try_fault(tmp_path / str(at), "weights", at, "die", False, monkeypatch)[1]
    assert any("visible but not whole" in words for words in found)
