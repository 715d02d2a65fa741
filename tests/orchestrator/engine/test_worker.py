"""Units in this process, by the code that the workers of a lane run: what is done, what is redone, what is said of a fault."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_task
from trained import Trained, jobs, prepared, train

from scalespec.analysis import tables
from scalespec.orchestrator.engine import worker
from scalespec.orchestrator.engine.worker import STALLED_EXIT, Worker, is_finished, reason_of, watched
from scalespec.trainables.checkpoints import FencedError, RunFolder, local_run
from scalespec.trainables.errors import DataChangedError
from scalespec.trainables.history import LAST_WORDS

SMALL: dict[str, Any] = {
    "grid": {"width": [8], "data_fraction": ["1", "1/2"]},
    "data": {"limit": 512},
    "train": {"checkpoints": 3},
}


def toy_with(folder: Path, **task: Any) -> Trained:
    return prepared(folder / "toy", **SMALL, task={"name": "toy_task:Toy", **task})


def results(study: Trained) -> list[dict[str, Any] | None]:
    return [study.store.run(spec.run_key).result() for spec in study.specs]


def test_a_unit_leaves_a_committed_result_of_every_run(tmp_path):
    study = train(toy_with(tmp_path))
    for spec, result in zip(study.specs, results(study), strict=True):
        assert result["status"] == "done"
        assert result["session"] == "session-1"
        assert result["code_version"] == "test"
        assert result["steps"] == int(spec.data_fraction * 512) // 16
        claim = study.store.run(spec.run_key).claims()[0]
        assert result["started_at"] == claim["time"]


def test_a_finished_run_is_not_touched_again(tmp_path):
    study = train(toy_with(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in Path(study.store.root).rglob("*") if path.is_file()}
    for session in ("session-1", "session-2"):  # a restarted worker group, and a second driver
        train(study, session)
        assert {path: path.stat().st_mtime_ns for path in Path(study.store.root).rglob("*") if path.is_file()} == before


def test_what_is_finished_already_is_told_to_the_driver(tmp_path):
    """A lane of a killed driver may have finished it after the next driver's first look; nobody else would ever say so."""
    study, told = train(toy_with(tmp_path)), []
    Worker(study.store, "session-2", None, tell=lambda folder, what: told.append((folder, what))).run(jobs(study))
    assert sorted(told) == sorted((f"runs/{spec.run_key}", "result") for spec in study.specs)


def test_a_bug_is_a_result_with_the_counts_that_need_no_training(tmp_path):
    study = train(toy_with(tmp_path, raise_width=8))
    for spec, result in zip(study.specs, results(study), strict=True):
        assert result["status"] == "failed"
        assert re.match(r"bug: \w+Error: .*a bug of the user's own", result["error"])
        assert result["params_matmul"] == study.grid.of(spec).counts(8).params_matmul > 0
        assert result["val_loss"] is None
        assert result["steps"] == 0


def test_a_failure_stands_for_its_session_and_is_tried_again_in_the_next(tmp_path):
    study = train(toy_with(tmp_path, raise_width=8))
    claims = [len(study.store.run(spec.run_key).claims()) for spec in study.specs]
    assert claims == [1, 1]
    train(study, "session-1")
    assert [len(study.store.run(spec.run_key).claims()) for spec in study.specs] == [1, 1]
    train(study, "session-2")
    assert [len(study.store.run(spec.run_key).claims()) for spec in study.specs] == [2, 2]
    assert {result["session"] for result in results(study)} == {"session-2"}


def test_divergence_is_a_result_that_no_session_repeats(tmp_path):
    study = train(toy_with(tmp_path, explode_width=8))
    assert {result["status"] for result in results(study)} == {"diverged"}
    assert all(result["error"].startswith("non_finite") for result in results(study))
    train(study, "session-2")
    assert {result["session"] for result in results(study)} == {"session-1"}


def in_a_process(study: Trained, session: str = "session-1") -> int | None:
    process = mp.get_context("fork").Process(target=train, args=(study, session))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture
def lonely(tmp_path):
    """One run that kills its process, as often as the file `deaths` allows."""
    one = {**SMALL, "grid": {"width": [8], "data_fraction": ["1"]}}

    def make(times: int) -> Trained:
        task = {"name": "toy_task:Toy", "kill_width": 8, "kill_file": str(tmp_path / "deaths"), "kill_times": times}
        return prepared(tmp_path / "toy", **one, task=task)

    return make


def test_two_deaths_of_its_worker_end_a_run_and_the_third_attempt_says_so(lonely):
    study = lonely(99)
    assert in_a_process(study) == -9
    assert in_a_process(study) == -9
    assert results(study) == [None]
    assert in_a_process(study) == 0
    (result,) = results(study)
    assert (result["status"], result["error"]) == ("failed", "worker_died: its worker died twice")


def test_deaths_are_counted_by_session(lonely):
    study = lonely(2)
    assert in_a_process(study, "session-1") == -9
    assert in_a_process(study, "session-2") == -9
    assert in_a_process(study, "session-2") == 0
    assert results(study)[0]["status"] == "done"


def test_the_last_words_of_an_earlier_session_are_not_those_of_a_later_one(lonely):
    study = lonely(2)
    folder = study.store.run(study.specs[0].run_key)
    folder.claim("session-0")
    study.store.files.write(f"{folder.path}/{LAST_WORDS}", b'{"error": "stalled: long ago"}')
    for _ in range(2):
        assert in_a_process(study) == -9
    assert in_a_process(study) == 0
    assert results(study)[0]["error"] == "worker_died: its worker died twice"


def test_a_result_that_was_cut_off_is_no_result(tmp_path):
    study = train(toy_with(tmp_path))
    before = results(study)
    path = Path(study.store.root, study.store.run(study.specs[0].run_key).history().result_path)
    path.write_bytes(path.read_bytes()[:-20])
    assert results(study)[0] is None
    train(study, "session-2")
    assert results(study)[0]["val_loss"] == before[0]["val_loss"]
    assert results(study)[1] == before[1]


def test_an_attempt_that_was_replaced_commits_nothing(tmp_path, monkeypatch):
    """A worker that was cut off from Ray but not from the storage: its replacement's claim shuts it out."""
    study = toy_with(tmp_path)
    folder = study.store.run(study.specs[-1].run_key)
    claim = type(folder).claim

    def claimed_by_another_at_once(self, session):
        attempt = claim(self, session)
        if self.folder.startswith("runs/") and session != "other":
            RunFolder(self.files, self.folder).claim("other")
        return attempt

    monkeypatch.setattr(type(folder), "claim", claimed_by_another_at_once)
    with pytest.raises(FencedError, match="attempt 2 has replaced attempt 1"):
        train(study)
    assert results(study) == [None, None]


def test_data_that_changed_since_the_plan_is_named(tmp_path, monkeypatch):
    study = toy_with(tmp_path)
    load = toy_task.Toy.load
    monkeypatch.setattr(toy_task.Toy, "load", lambda self, data: load(self, replace(data, limit=data.limit + 16)))
    for result in results(train(study)):
        assert result["status"] == "failed"
        assert re.match(r"data_changed: teacher gives sha256 \w{12}… here, planned with \w{12}…$", result["error"])


def test_the_data_is_read_once_however_many_units_a_lane_takes(tmp_path, monkeypatch):
    study, loads = toy_with(tmp_path), []
    load = worker.Prepared.load
    monkeypatch.setattr(worker.Prepared, "load", lambda *args: loads.append(args) or load(*args))
    lane = Worker(study.store, "session-1", None)
    for job in jobs(study):
        lane.run([job])
    assert len(loads) == 1
    assert {result["status"] for result in results(study)} == {"done"}


def test_every_commit_is_told_after_it_is_there(tmp_path):
    """A word is a hint where to look, so what it speaks of must be on disk when it is heard."""
    study = toy_with(tmp_path)
    told: list[tuple[str, str]] = []
    commits: dict[str, int] = {}

    def tell(folder: str, what: str) -> None:
        run = study.store.run(folder.removeprefix("runs/"))
        assert what != "claim" or len(run.claims()) == 1
        assert (what == "result") == (run.result() is not None)
        if what == "commit":
            seen = run.history()
            now = len(seen.checkpoints) + len(seen.states)
            assert now > 0
            commits[folder] = max(now, commits.get(folder, 0))
        told.append((folder, what))

    Worker(study.store, "session-1", None, tell=tell).run(jobs(study))
    for spec in study.specs:
        said = [what for folder, what in told if folder == f"runs/{spec.run_key}"]
        assert (said[0], said[-1]) == ("claim", "result")
        assert said.count("claim") == said.count("result") == 1
        assert set(said[1:-1]) == {"commit"}
    assert set(commits) == {f"runs/{spec.run_key}" for spec in study.specs}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "oom: MemoryError: no message"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom: OutOfMemoryError: CUDA out of memory"),
        (DataChangedError("data_changed: other bytes"), "data_changed: other bytes"),
        (OSError(28, "No space left on device"), "storage: OSError: [Errno 28] No space left on device"),
        (KeyError("w"), "bug: KeyError: 'w'"),
    ],
)
def test_errors_have_a_type_of_the_contract(error, text):
    assert reason_of(error) == text
    assert text.partition(":")[0] in tables.ERROR_REASONS


def _stall(folder: str) -> None:
    with watched(0.3, local_run(folder)):
        time.sleep(60)


def test_the_watchdog_ends_a_process_that_makes_no_step(tmp_path):
    process = mp.get_context("fork").Process(target=_stall, args=(str(tmp_path / "run"),))
    process.start()
    process.join(60)
    assert process.exitcode == STALLED_EXIT
    words = json.loads((tmp_path / "run/e000001/last_words.json").read_text())["error"]
    assert words == "stalled: no step for 0.3 s (train.stall_timeout_s)"


def test_a_heart_that_beats_is_left_alone(tmp_path):
    with watched(0.5, local_run(tmp_path / "run")) as beat:
        for _ in range(10):
            time.sleep(0.1)
            beat()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("result", "session", "finished"),
    [
        (None, "a", False),
        ({"status": "done"}, "a", True),
        ({"status": "diverged", "session": "b"}, "a", True),
        ({"status": "failed", "session": "b"}, "a", False),
        ({"status": "failed", "session": "a"}, "a", True),
    ],
)
def test_what_counts_as_finished(tmp_path, result, session, finished):
    folder = local_run(tmp_path / "run")
    if result is not None:
        folder.finish({**result, "steps": 1}, None)
    assert is_finished(folder, session) is finished


def test_the_result_of_a_failure_has_every_column_of_a_result(tmp_path):
    done = train(prepared(tmp_path / "done", **SMALL))
    failed = train(prepared(tmp_path / "failed", **SMALL, task={"name": "toy_task:Toy", "raise_width": 8}))
    assert set(results(failed)[0]) == set(results(done)[0])
