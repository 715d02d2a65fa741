"""The recorder beside training: what it is told of is in MLflow, once each; its faults reach nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from counted import Counted
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tracked import client_of, complete, law, points_of, runs_of, summary_of, tracker_of
from trained import Trained, train

from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.watch import Event, Watcher
from scalespec.orchestrator.tracking.mlflow import Target, Told, Tracker, params_of
from scalespec.orchestrator.tracking.recorder import Recorder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("scalespec.orchestrator.tracking.recorder.PAUSE_S", 0.02)
    monkeypatch.setattr("scalespec.orchestrator.tracking.recorder.RETRY_S", 0.02)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


class Noted:
    """A tracker that notes what it is asked to record, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.opened = failures, 0
        self.recorded: list[dict[str, Told | None]] = []

    def open(self) -> None:
        self.opened += 1

    def record(self, specs, told) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody there")
        self.recorded.append({spec.run_key: told.get(spec.run_key) for spec in specs})


def keys_of(study: Trained) -> list[str]:
    return [spec.run_key for spec in study.specs]


def wait(until: Callable[[], object], recorder: Recorder) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline, recorder.problem
        time.sleep(0.01)


def tell(recorder: Recorder, watcher: Watcher, study: Trained) -> None:
    """What is new on disk, as the driver tells it."""
    recorder.take(watcher.look(keys_of(study)), watcher.results)


def of(key: str, what: str, path: str = "") -> Event:
    return Event(key, what, 0, path)


def test_it_sends_what_it_was_told_and_of_what_it_was_told(study):
    first, second = keys_of(study)
    noted = Noted()
    recorder = Recorder(noted)
    recorder.expect(study.specs)
    recorder.take([], {})
    assert not recorder._thread.ident  # the driver may be measuring the machine's speed
    recorder.begin()
    wait(lambda: noted.opened, recorder)
    assert not noted.recorded
    events = [
        of(second, "claim", "c1"),
        of(second, "part", "p1"),
        of(second, "claim", "c2"),
        of("another's", "part", "p"),
    ]
    recorder.take(events, {})
    wait(lambda: noted.recorded, recorder)
    recorder.take([of(first, "result", "r")], {first: {"steps": 1}})
    recorder.take([of(second, "part", "p2"), of(second, "result", "r")], {second: {"steps": 2}})
    wait(lambda: sum(map(len, noted.recorded)) == 3, recorder)
    recorder.stop()
    assert noted.recorded[0] == {second: Told("c1", ("p1",))}
    rest = {key: told for news in noted.recorded[1:] for key, told in news.items()}
    # the first was finished before anybody looked: of it alone the disk is to be asked
    assert rest == {first: None, second: Told("", ("p2",), {"steps": 2})}


def test_news_that_could_not_be_sent_are_sent_later_and_with_what_came_since(study):
    key = keys_of(study)[0]
    noted = Noted(failures=3)
    recorder = Recorder(noted, study.specs)
    recorder.take([of(key, "claim", "c1"), of(key, "part", "p1")], {})
    wait(lambda: noted.failures < 3, recorder)
    recorder.take([of(key, "part", "p2")], {})
    wait(lambda: noted.recorded, recorder)
    recorder.stop()
    sent = [news[key] for news in noted.recorded]
    assert [path for told in sent for path in told.parts] == ["p1", "p2"]
    assert sent[0].claim == "c1"
    assert recorder.problem == ""


def test_the_thread_follows_a_study_while_it_is_trained(study):
    for spec in study.specs:
        study.store.files.delete(f"runs/{spec.run_key}")
        study.store.write_spec(spec)
    study.store.files.delete("families")
    recorder, watcher = Recorder(tracker_of(study), study.specs), Watcher(StudyStore(study.store.root))
    files = study.store.__dict__["files"] = Counted(study.store.files)
    training = threading.Thread(target=train, args=(Trained(study.study, study.grid, watcher.store),))
    training.start()
    deadline = time.monotonic() + 30
    client = client_of(study)
    while len(recorder.run_ids) < 2 or {run.info.status for run in runs_of(client)[1]} != {"FINISHED"}:
        assert time.monotonic() < deadline, recorder.problem
        tell(recorder, watcher, study)
        time.sleep(0.05)
    training.join()
    recorder.take([of(study.specs[0].run_key, "media")], watcher.results)  # a word too many
    recorder.stop()
    assert not {"walk", "names"} & set(files.calls), "it is told everything"
    assert len(runs_of(client)[1]) == 2
    for run in runs_of(client)[1]:
        points = points_of(client, run)
        assert len({point[:2] for point in points}) == len(points)


def test_an_unreachable_server_is_reported_and_never_raised(study):
    recorder = Recorder(Tracker(study.store, Target("http://127.0.0.1:9"), "toy"), study.specs)
    tell(recorder, Watcher(study.store), study)
    wait(lambda: recorder.problem, recorder)
    recorder.stop()
    assert not recorder._thread.is_alive()
    assert "127.0.0.1" in recorder.problem
    assert "\n" not in recorder.problem
    assert recorder.complete(summary_of(study), [law(alpha=0.3)], status="FINISHED") is False
    assert recorder.run_ids == {}
    # and the same disk is brought into another store afterwards
    complete(study, [law(alpha=0.3)])
    assert len(runs_of(client_of(study))[1]) == 2


def test_without_tracking_nothing_is_done(study):
    recorder = Recorder(None, study.specs)
    tell(recorder, Watcher(study.store), study)
    recorder.stop()
    assert recorder.complete([], [], status="FINISHED") is False
    assert (recorder.problem, recorder.run_ids) == ("", {})


@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_inputs", "set_tag", "set_terminated"])
@pytest.mark.parametrize("restarted", [True, False])
def test_a_server_that_fails_once_loses_nothing(study, monkeypatch, method, restarted):
    whole = tracker_of(study)
    original, failures = getattr(MlflowClient, method), [2]

    def failing(self, *args, **kwargs):
        if failures[0]:
            failures[0] -= 1
            raise MlflowException("the database is locked")
        return original(self, *args, **kwargs)

    recorder = Recorder(whole, study.specs)
    whole.open()
    monkeypatch.setattr(MlflowClient, method, failing)
    for _ in range(2):
        assert not recorder._try(lambda tracker: tracker.record(study.specs))
        assert recorder.problem == "MlflowException: the database is locked"
    if restarted:
        recorder = Recorder(tracker_of(study), study.specs)
    assert recorder._try(lambda tracker: tracker.record(study.specs))
    assert recorder.problem == ""
    client = client_of(study)
    _, children = runs_of(client)
    assert sorted(run.data.tags["run_key"] for run in children) == sorted(spec.run_key for spec in study.specs)
    for run in children:
        assert run.info.status == "FINISHED"
        assert set(run.data.params) == set(
            params_of(next(s for s in study.specs if s.run_key == run.data.tags["run_key"]))
        )
        assert len(run.inputs.dataset_inputs) == 1
        points = points_of(client, run)
        assert len({point[:2] for point in points}) == len(points) > 20
