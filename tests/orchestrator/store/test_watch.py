"""The watcher: everything that is committed is told once, at the cost of the runs looked at."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from counted import Counted
from trained import Trained, jobs, prepared, train, trained

from scalespec.orchestrator.engine.worker import Worker
from scalespec.orchestrator.store import watch
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.watch import Event, Watcher
from scalespec.trainables.history import CLAIM, RESULT

SMALL: dict[str, Any] = {
    "grid": {"width": [8], "data_fraction": ["1", "1/2"], "seed": [0, 1]},
    "data": {"limit": 512},
    "train": {"checkpoints": 4, "resume_every_s": 0.01},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Trained:
    """Four finished runs; not to be changed."""
    return trained(tmp_path_factory.mktemp("watched") / "toy", **SMALL)


@pytest.fixture
def study(done, tmp_path) -> Trained:
    """A copy to do harm to."""
    shutil.copytree(done.store.root, tmp_path / "toy")
    return Trained(done.study, done.grid, StudyStore(str(tmp_path / "toy")))


def keys(study: Trained) -> list[str]:
    return [spec.run_key for spec in study.specs]


def committed(study: Trained, key: str) -> set[Event]:
    """What should have been told of a finished run by whoever saw all of it."""
    seen = study.store.run(key).history()
    root = f"runs/{key}"
    events = {Event(key, "claim", 0, f"{root}/e{attempt:06d}/{CLAIM}") for attempt in seen.attempts}
    events |= {Event(key, "part", 0, path) for path in seen.metric_parts}
    events |= {Event(key, "checkpoint", step, path) for step, path in seen.checkpoints.items()}
    return events | {Event(key, "result", 0, str(seen.result_path))}


def counted(watcher: Watcher) -> Counted:
    files = watcher._files = Counted(watcher._files)
    return files


def test_every_commit_is_told_once_however_often_somebody_looks(tmp_path):
    study = prepared(tmp_path / "toy", **SMALL)
    watcher = Watcher(study.store)
    assert watcher.begin(keys(study)) == []
    told: list[Event] = []

    def tell(folder: str, what: str) -> None:
        told.extend(watcher.look([folder.removeprefix("runs/")]))
        told.extend(watcher.look(random.choices(keys(study), k=2)))

    Worker(study.store, "session-1", None, tell=tell).run(jobs(study))
    assert len(told) == len(set(told))
    for key in keys(study):
        mine = [event for event in told if event.run_key == key]
        assert mine[0].what == "claim"
        assert mine[-1].what == "result"
        assert set(mine) == committed(study, key)
        assert watcher.results[key] == study.store.run(key).result()
    assert watcher.look(keys(study)) == []


def test_a_finished_run_is_told_by_its_result_and_never_walked_again(done):
    watcher = Watcher(done.store)
    files = counted(watcher)
    events = watcher.begin([*keys(done), "a-run-that-is-not-there"])
    assert sorted(event.run_key for event in events) == sorted(keys(done))
    assert {event.what for event in events} == {"result"}
    # one listing of the runs, and of each run a listing and a read
    assert files.calls == {"names": 1 + 4, "read": 4}
    files.calls.clear()
    for _ in range(5):
        assert watcher.look(keys(done)) == []
    assert files.calls == {}


def test_a_look_costs_calls_only_for_the_runs_looked_at(study):
    """Of many runs one is in a lane: its folder is walked once a look, and what was read is not read again."""
    running, *others = keys(study)
    (Path(study.store.root) / study.store.run(running).history().result_path).unlink()
    watcher = Watcher(study.store)
    watcher.begin(others)
    files = counted(watcher)
    told = watcher.look([running])
    # without a result or a state above them, a resumed attempt may take its metrics back
    assert {event.what for event in told} == {"claim", "checkpoint"}
    assert files.calls == {"walk": 1, "read": 1}
    files.calls.clear()
    assert watcher.look([running]) == []
    assert files.calls == {"walk": 1}
    # a second attempt: its claim is read, the first one's is not
    study.store.run(running).claim("session-2")
    files.calls.clear()
    assert [event.what for event in watcher.look([running])] == ["claim"]
    assert files.calls == {"walk": 1, "read": 1}


def test_results_cost_a_listing_and_a_read_for_each_run_that_has_one(study, monkeypatch):
    files = Counted(study.store.files)
    monkeypatch.setitem(study.store.__dict__, "files", files)
    found = watch.results(study.store, [*keys(study), "absent"])
    assert found == {key: study.store.run(key).result() for key in keys(study)}
    files.calls.clear()
    watch.results(study.store, keys(study))
    assert files.calls == {"names": 1 + 4, "read": 4}


DAMAGE = [b"", b"{", b"[]", b"null", b'"done"', b'{"step": 1}', b'{"status": 3}', b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_none_and_the_run_is_looked_at_until_it_has_one(study, damage):
    key, *others = keys(study)
    path = Path(study.store.root, study.store.run(key).history().result_path)
    good = path.read_bytes()
    path.write_bytes(damage)
    assert set(watch.results(study.store, keys(study))) == set(others)
    watcher = Watcher(study.store)
    told = watcher.begin(keys(study))
    assert {event.run_key for event in told if event.what == "result"} == set(others)
    assert key not in watcher.results
    path.write_bytes(good)
    assert watcher.look([key]) == [Event(key, "result", 0, str(path.relative_to(study.store.root)))]


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_an_attempt_whose_claim_is_damaged_nothing_is_told(study, damage):
    key, *_ = keys(study)
    watcher = Watcher(study.store)
    watcher.look([key])
    folder = study.store.run(key)
    number = folder.claim("session-2")
    claim = Path(study.store.root, folder.path, CLAIM)
    claim.write_bytes(damage)
    Path(study.store.root, folder.path, "checkpoints/step-00000007").mkdir(parents=True)
    Path(study.store.root, folder.path, "checkpoints/step-00000007/manifest.json").write_bytes(b"{}")
    again = Watcher(study.store)
    assert all(f"/e{number:06d}/" not in event.path for event in again.look([key]))
    assert again.results[key] == watcher.results[key], "the attempt before it has finished"


def test_foreign_files_are_passed_over(study):
    root, (key, *_) = Path(study.store.root), keys(study)
    run = root / "runs" / key
    for name in ("notes.txt", "e1/claim.json", "e000001x/result.json", "e000001/checkpoints/last/manifest.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    (run / "e000001/metrics/part-1.parquet").write_text("")
    (run / "e000001/.tmp-x").write_text("")
    (root / "runs/README").write_text("")
    # a claimant that died before its claim, with its temporary file
    (run / "e000002").mkdir()
    (run / "e000002/.tmp-claim").write_text("")
    assert set(watch.results(study.store, keys(study))) == set(keys(study))
    result = run / "e000001" / RESULT
    kept = result.read_bytes()
    result.unlink()
    watcher = Watcher(study.store)
    told = watcher.begin(["README", *keys(study)])
    result.write_bytes(kept)
    told += watcher.look([key])
    mine = [event for event in told if event.run_key == key]
    assert set(mine) == committed(study, key)
    assert {event.run_key for event in told} == set(keys(study))


def test_a_failed_run_that_is_tried_again_is_followed_and_nothing_is_told_twice(tmp_path):
    task = {"name": "toy_task:Toy", "raise_width": 8}
    study = train(prepared(tmp_path / "toy", **SMALL, task=task))
    watcher = Watcher(study.store)
    first = watcher.begin(keys(study))
    assert [event.what for event in first] == ["result"] * 4
    first += watcher.look(keys(study))
    assert watcher.look(keys(study)) == []
    train(study, "session-2")
    second = watcher.look(keys(study))
    assert {event.what for event in second} >= {"claim", "result"}
    assert not set(first) & set(second)
    assert {result["session"] for result in watcher.results.values()} == {"session-2"}
    assert watcher.look(keys(study)) == []


class Away(Counted):
    """Storage that does not answer for a while."""

    gone = False

    def walk(self, folder: str) -> list[str]:
        if self.gone:
            raise OSError("the storage is away")
        return super().walk(folder)

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        if self.gone and path.endswith((CLAIM, RESULT)):
            raise OSError("the storage is away")
        return super().read(path, start, size)


@pytest.mark.parametrize("walks", [True, False])
def test_storage_that_is_away_costs_no_event(study, caplog, walks):
    """A word is given once: what could not be seen then is looked for at the next look, whatever that one is for."""
    key, *_ = keys(study)
    watcher = Watcher(study.store)
    files = Away(watcher._files)
    watcher._files, files.gone = files, True
    if walks:
        files.walk = Counted.walk.__get__(files)
    assert watcher.look([key]) == []
    assert "the storage is away" in caplog.text
    files.gone = False
    told = watcher.look([])
    assert set(told) == committed(study, key)
    assert watcher.look([]) == []


def test_reading_leaves_the_disk_as_it_was(done):
    root = Path(done.store.root)
    before = {path: os.stat(path).st_mtime_ns for path in root.rglob("*")}
    Watcher(done.store).begin(keys(done))
    Watcher(done.store).look(keys(done))
    assert {path: os.stat(path).st_mtime_ns for path in root.rglob("*")} == before
    assert json.loads(json.dumps(watch.results(done.store, keys(done)))) == watch.results(done.store, keys(done))
