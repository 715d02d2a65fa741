from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from scalespec.trainables.checkpoints import DamagedError, FencedError, RunFolder
from scalespec.trainables.commits import read_committed
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.history import MANIFEST, STATE, step_folder, step_of
from scalespec.trainables.io import Media, State, ValRows


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
    assert folder.files.names(f"{folder.path}/resume") == [step_folder(3), step_folder(4)]
    assert folder.load_latest(at_most=2).step == 1


SHAPES = [
    b"",
    b"{",
    b"[]",
    b"3",
    b"null",
    b'{"files": 3}',
    b'{"files": {"state.safetensors": 3}}',
    b'{"files": {"a/b": {}}}',
]
SHAPES += [
    b'{"files": {"state.safetensors": {"bytes": "1", "sha256": 2}}}',
    b'{"files": {}}',
    b"[" * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_manifest", "no_meta", *range(len(SHAPES))])
def test_a_damaged_state_is_passed_over_for_the_one_before(folder, tmp_path, damage):
    folder.save_state(state(1))
    folder.save_state(state(2))
    newest = tmp_path / folder.path / "resume" / step_folder(2)
    data = (newest / STATE).read_bytes()
    if damage == "truncate":
        (newest / STATE).write_bytes(data[:-3])
    elif damage == "flip":
        (newest / STATE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no_manifest":
        (newest / MANIFEST).unlink()
    elif damage == "no_meta":
        facts = json.loads((newest / MANIFEST).read_text())
        (newest / MANIFEST).write_text(json.dumps({**facts, "meta": 3}))
    else:
        (newest / MANIFEST).write_bytes(SHAPES[damage])
    assert folder.load_latest().step == 1
    again = RunFolder(folder.files, folder.folder)
    again.claim("next")
    assert again.claims()[-1]["after"] == {"attempt": 1, "step": 1}
    assert again.load_latest().step == 1


def test_what_was_logged_after_the_state_that_is_taken_over_does_not_count(folder):
    folder.log(1, 16, 1.0, {"train_loss": 1.0})
    folder.save_state(state(1))
    folder.log(2, 32, 2.0, {"train_loss": 0.9})
    folder.save_state(state(2))
    folder.files.delete(f"{folder.path}/resume/{step_folder(2)}")
    again = RunFolder(folder.files, folder.folder)
    again.claim("next")
    assert [row["step"] for row in again.metrics()] == [1]
    again.log(2, 32, 2.0, {"train_loss": 0.8})
    again.save_state(state(2))
    assert [row["value"] for row in RunFolder(folder.files, folder.folder).metrics()] == [1.0, 0.8]


def test_an_attempt_that_was_replaced_stops_at_its_next_commit(tmp_path):
    old = RunFolder(LocalFiles(tmp_path), "runs/r")
    assert old.claim("session") == 1
    old.save_state(state(1))
    new = RunFolder(LocalFiles(tmp_path), "runs/r")
    assert new.claim("session") == 2
    for commit in (
        lambda: old.save_state(state(2)),
        lambda: old.save_weights(2, 32, 1.0, {"w": torch.zeros(2)}, {}),
        lambda: old.save_media(2, [Media("a", "text", b"x")]),
        lambda: old.finish({"steps": 2}, None),
        lambda: old.adopt(new, 2, []),
    ):
        with pytest.raises(FencedError, match="attempt 2 has replaced attempt 1"):
            commit()
    assert new.load_latest().step == 1
    assert new.result() is None


def test_what_a_replaced_attempt_writes_all_the_same_changes_nothing(tmp_path, monkeypatch):
    """It was cut off between its look at the claims and its writing, which no look can rule out."""
    old = RunFolder(LocalFiles(tmp_path), "runs/r")
    old.log(1, 16, 1.0, {"train_loss": 1.0})
    old.save_state(state(1))
    new = RunFolder(LocalFiles(tmp_path), "runs/r")
    new.claim("session")
    monkeypatch.setattr(old, "_begin", lambda: None)
    old.log(2, 32, 2.0, {"train_loss": 0.5})
    old.save_weights(2, 32, 1.0, {"w": torch.zeros(2)}, {})
    old.save_media(2, [Media("a", "text", b"x")])
    old.save_state(state(2))
    old.save_state(state(3))
    old.finish({"steps": 3, "status": "done"}, None)
    reader = RunFolder(LocalFiles(tmp_path), "runs/r")
    assert (reader.result(), reader.checkpoint_steps()) == (None, [])
    seen = reader.history()
    assert (seen.media, seen.result_path, seen.val_path) == ({}, None, None)
    assert [row["step"] for row in reader.metrics()] == [1]
    # the state that was taken over is in the hands of its new owner since its claim, whatever became of the file
    assert new.load_latest().step == 1


def test_a_claimant_that_died_before_its_claim_stops_nobody(folder, tmp_path):
    folder.claim("session")
    (tmp_path / "runs/r/e000002").mkdir()
    folder.save_state(state(1))
    assert RunFolder(folder.files, folder.folder).claim("session") == 2


@pytest.mark.parametrize("name", ["e2", "e0000002x", "x000002", "E000002", "notes.txt", "e000002.bak", "step-00000001"])
def test_foreign_names_in_a_run_are_passed_over(folder, tmp_path, name):
    folder.save_state(state(1))
    (tmp_path / "runs/r" / name).mkdir()
    (tmp_path / "runs/r" / name / "claim.json").write_text("{}")
    for inner in ("resume", "checkpoints", "media", "metrics"):
        (tmp_path / folder.path / inner / "step-x").mkdir(parents=True)
        (tmp_path / folder.path / inner / "part-1.txt").write_text("?")
    folder.save_state(state(2))
    assert RunFolder(folder.files, folder.folder).claim("session") == 2
    assert RunFolder(folder.files, folder.folder).load_latest().step == 2


SHAPED = b'{"session": "s", "time": 1.0, "after": null, "before": %b}'


@pytest.mark.parametrize(
    "claim", [*SHAPES, *(SHAPED % inner for inner in (b"3", b'{"x": 1}', b'{"1": "2"}', b'{"1": 1.5}'))]
)
def test_an_attempt_whose_claim_is_damaged_is_passed_over(folder, tmp_path, claim):
    folder.save_state(state(1))
    newer = RunFolder(folder.files, folder.folder)
    newer.claim("session")
    newer.save_state(state(5))
    (tmp_path / newer.path / "claim.json").write_bytes(claim)
    reader = RunFolder(folder.files, folder.folder)
    assert reader.load_latest().step == 1
    assert [each["attempt"] for each in reader.claims()] == [1]
    assert reader.claim("session") == 3


def test_the_result_of_an_attempt_that_was_replaced_is_none(folder):
    folder.finish({"steps": 0, "status": "failed"}, None)
    assert folder.result()["status"] == "failed"
    again = RunFolder(folder.files, folder.folder)
    again.claim("session")
    assert RunFolder(folder.files, folder.folder).result() is None
    again.finish({"steps": 3, "status": "done"}, None)
    assert RunFolder(folder.files, folder.folder).result()["status"] == "done"


def test_the_first_result_of_an_attempt_stands(folder):
    """The answer to the write may have been lost; the failure to see it must not undo what others have read."""
    folder.finish({"steps": 3, "status": "done"}, None)
    folder.finish({"steps": 0, "status": "failed"}, None)
    assert folder.result()["status"] == "done"


def test_a_failed_run_keeps_the_states_that_its_next_attempt_goes_on_from(folder):
    folder.save_state(state(2))
    folder.finish({"steps": 0, "status": "failed"}, None)
    again = RunFolder(folder.files, folder.folder)
    again.claim("session")
    assert again.load_latest().step == 2
    again.finish({"steps": 3, "status": "done"}, None)
    assert again.history().states == ()


def test_points_logged_twice_at_one_step_are_all_kept(folder):
    folder.log(1, 16, 1.0, {"train_loss": 1.0})
    folder.save_state(state(1))
    folder.log(1, 16, 1.0, {"val_loss": 2.0})
    folder.save_state(state(1))
    assert {row["metric"] for row in RunFolder(folder.files, folder.folder).metrics()} == {"train_loss", "val_loss"}


def test_a_damaged_part_costs_its_own_points_only(folder, tmp_path, caplog):
    for step in (1, 2):
        folder.log(step, 16, 1.0, {"train_loss": 1.0})
        folder.save_state(state(step))
    part = folder.history().metric_parts[0]
    (tmp_path / part).write_bytes(b'{"step": ')
    assert [row["step"] for row in folder.metrics()] == [2]
    assert part in caplog.text


def test_a_trunk_counts_the_kept_states_of_all_its_attempts(tmp_path):
    files = LocalFiles(tmp_path)
    for steps in ((2, 4), (6,), ()):
        trunk = RunFolder(files, "families/f")
        trunk.claim("session")
        for step in steps:
            trunk.save_weights(step, step, 1.0, {"w": torch.zeros(2)}, {})
            trunk.save_state(state(step), keep=True)
    assert [at.step for at in trunk.history().states] == [2, 4, 6]
    assert trunk.checkpoint_steps() == [2, 4, 6]
    # what an attempt that took over at 6 makes anew below it counts too
    trunk.save_weights(3, 3, 1.0, {"w": torch.zeros(2)}, {})
    again = RunFolder(files, "families/f")
    again.claim("session")
    assert again.checkpoint_steps() == [2, 3, 4, 6]


def test_a_tensor_can_be_verified_by_itself(folder):
    weights = {"b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "s": torch.tensor(2.0), "e": torch.zeros(0, 3)}
    folder.save_weights(1, 16, 1.0, {**weights, "t": torch.arange(6.0).reshape(2, 3).T}, {})
    (path,) = folder.history().checkpoints.values()
    facts, contents = read_committed(folder.files, path)
    entry, data = facts["files"]["model.safetensors"], contents["model.safetensors"]
    length = 8 + int.from_bytes(data[:8], "little")
    assert entry["header"] == {"bytes": length, "sha256": hashlib.sha256(data[:length]).hexdigest()}
    header = json.loads(data[8:length])
    header.pop("__metadata__")
    spans = {name: [length + at for at in found["data_offsets"]] for name, found in header.items()}
    assert entry["tensors"] == {name: hashlib.sha256(data[a:b]).hexdigest() for name, (a, b) in spans.items()}


def test_finish_commits_the_result_last_and_drops_resume_states(folder):
    folder.log(3, 48, 3.0, {"train_loss": 0.5})
    folder.save_state(state(2))
    folder.log(3, 48, 3.0, {"lr": 0.1})
    rows = ValRows(np.array([0.5, 1.5]), np.array([1.0, 0.0]), np.array([True, False]))
    folder.finish({"steps": 3, "status": "done"}, rows)
    assert folder.result() == {"steps": 3, "status": "done"}
    assert folder.files.names(f"{folder.path}/resume") == []
    lines = [json.loads(line) for line in folder.files.read(folder.history().val_path).decode().splitlines()]
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
    file = tmp_path / trunk.path / "checkpoints" / step_folder(2) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    run = RunFolder(LocalFiles(tmp_path), "runs/r")
    with pytest.raises(DamagedError) as caught:
        run.adopt(trunk, 4, [2])
    assert caught.value.step == 2
    assert trunk.checkpoint_steps() == []


def test_read_committed_ignores_what_is_not_a_manifest(tmp_path):
    files = LocalFiles(tmp_path)
    files.write("c/manifest.json", b"[]")
    assert read_committed(files, "c") is None
    assert read_committed(files, "absent") is None


def test_step_names():
    assert step_of(step_folder(1234)) == 1234
    assert step_of("manifest.json") is None
