from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scalespec.trainables.checkpoints import (
    MANIFEST,
    STATE,
    DamagedError,
    FencedError,
    LocalFiles,
    RunFolder,
    read_committed,
    step_folder,
    step_of,
)
from scalespec.trainables.io import State, ValRows


@pytest.fixture
def folder(tmp_path):
    return RunFolder(LocalFiles(tmp_path), "runs/r")


def state(step: int) -> State:
    return State(step, {"model.w": torch.full((3, 2), float(step))}, {"seconds": 1.5})


def test_a_state_comes_back_as_it_was_saved(folder):
    folder.save_state(state(7))
    found = folder.load_latest()
    assert found.step == 7
    assert torch.equal(found.tensors["model.w"], state(7).tensors["model.w"])
    assert found.meta == {"seconds": 1.5}


def test_only_the_last_two_resume_states_stay_but_kept_ones_do(folder):
    folder.save_state(state(1), keep=True)
    for step in (2, 3, 4):
        folder.save_state(state(step))
    assert folder.files.names("runs/r/resume") == [step_folder(3), step_folder(4)]
    assert folder.load_latest(at_most=2).step == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_manifest", "bad_manifest"])
def test_a_damaged_state_is_passed_over_for_the_one_before(folder, tmp_path, damage):
    folder.save_state(state(1))
    folder.save_state(state(2))
    newest = tmp_path / "runs/r/resume" / step_folder(2)
    data = (newest / STATE).read_bytes()
    if damage == "truncate":
        (newest / STATE).write_bytes(data[:-3])
    elif damage == "flip":
        (newest / STATE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no_manifest":
        (newest / MANIFEST).unlink()
    else:
        (newest / MANIFEST).write_text("{")
    assert folder.load_latest().step == 1


def test_rewind_drops_what_has_no_state(folder):
    folder.log(1, 16, 1.0, {"train_loss": 1.0})
    folder.save_state(state(1))
    folder.log(2, 32, 2.0, {"train_loss": 0.9})
    folder.save_state(state(2))
    folder.files.delete("runs/r/resume/" + step_folder(2))
    folder.rewind(folder.load_latest().step)
    assert [row["step"] for row in folder.metrics()] == [1]


def test_an_older_attempt_can_commit_nothing(tmp_path):
    old = RunFolder(LocalFiles(tmp_path), "runs/r")
    assert old.claim("session") == 1
    old.save_state(state(1))
    new = RunFolder(LocalFiles(tmp_path), "runs/r")
    assert new.claim("session") == 2
    for commit in (
        lambda: old.save_state(state(2)),
        lambda: old.save_weights(2, 32, 1.0, {"w": torch.zeros(2)}, {}),
        lambda: old.finish({"steps": 2}, None),
    ):
        with pytest.raises(FencedError, match="attempt 2 has replaced attempt 1"):
            commit()
    assert new.load_latest().step == 1
    assert new.result() is None


def test_claims_are_create_only(tmp_path):
    files = LocalFiles(tmp_path)
    assert files.create("claims/000001", b"a")
    assert not files.create("claims/000001", b"b")
    assert files.read("claims/000001") == b"a"


def test_finish_commits_the_result_last_and_drops_resume_states(folder):
    folder.log(3, 48, 3.0, {"train_loss": 0.5})
    folder.save_state(state(2))
    folder.log(3, 48, 3.0, {"lr": 0.1})
    rows = ValRows(np.array([0.5, 1.5]), np.array([1.0, 0.0]), np.array([True, False]))
    folder.finish({"steps": 3, "status": "done"}, rows)
    assert folder.result() == {"steps": 3, "status": "done"}
    assert folder.files.names("runs/r/resume") == []
    lines = [json.loads(line) for line in folder.files.read("runs/r/val.jsonl").decode().splitlines()]
    assert lines[0] == {"example_id": 0, "half": "select", "loss": 0.5, "correct": 1.0}


def test_a_result_with_nan_is_refused_and_nothing_is_half_written(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.finish({"steps": 1, "val_loss": float("nan")}, None)
    assert folder.result() is None


def test_adopt_copies_the_record_up_to_the_branch(tmp_path):
    trunk = RunFolder(LocalFiles(tmp_path), "families/f")
    for step in (2, 4, 6):
        trunk.log(step, step * 16, float(step), {"train_loss": 1.0 / step})
        trunk.log(step, step * 16, float(step), {"val_loss": 2.0 / step})
        trunk.save_weights(step, step * 16, float(step), {"w": torch.full((2,), float(step))}, {"val_loss": 2.0 / step})
        trunk.save_state(state(step), keep=True)
    run = RunFolder(LocalFiles(tmp_path), "runs/r")
    run.adopt(trunk, 4, [2])
    assert run.checkpoint_steps() == [2]
    points = {(row["step"], row["metric"]) for row in run.metrics()}
    # the trunk was validated at step 4 for another run of the family
    assert points == {(2, "train_loss"), (4, "train_loss"), (2, "val_loss")}


def test_adopt_of_a_damaged_checkpoint_removes_it_and_says_which(tmp_path):
    trunk = RunFolder(LocalFiles(tmp_path), "families/f")
    trunk.save_weights(2, 32, 1.0, {"w": torch.zeros(2)}, {})
    file = tmp_path / "families/f/checkpoints" / step_folder(2) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    run = RunFolder(LocalFiles(tmp_path), "runs/r")
    with pytest.raises(DamagedError) as caught:
        run.adopt(trunk, 4, [2])
    assert caught.value.step == 2
    assert trunk.checkpoint_steps() == []


def test_a_write_that_fails_leaves_no_trace(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    files.write("a/result.json", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write("a/result.json", b"new")
    assert files.read("a/result.json") == b"old"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["result.json"]


def test_read_committed_ignores_what_is_not_a_manifest(tmp_path):
    files = LocalFiles(tmp_path)
    files.write("c/manifest.json", b"[]")
    assert read_committed(files, "c") is None
    assert read_committed(files, "absent") is None


def test_step_names():
    assert step_of(step_folder(1234)) == 1234
    assert step_of("part-00000012.parquet") == 12
    assert step_of("manifest.json") is None
