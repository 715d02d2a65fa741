"""The recorder beside training: what it is told of is in MLflow, once each; its faults reach nobody."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tracked import client_of, complete, law, points_of, runs_of, summary_of, tracker_of
from trained import Trained, train

from scalespec.orchestrator.store.watch import Watcher
from scalespec.orchestrator.tracking.mlflow import Target, Tracker, params_of
from scalespec.orchestrator.tracking.recorder import Recorder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("scalespec.orchestrator.tracking.recorder.PAUSE_S", 0.02)
    monkeypatch.setattr("scalespec.orchestrator.tracking.recorder.RETRY_S", 0.02)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


class Noted:
    """A tracker that notes what it is asked to record, and fails as often as it is told to."""

    run_ids: dict[str, str]

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.recorded = failures, list[list[str]]()

    def record(self, specs) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody there")
        self.recorded.append([spec.run_key for spec in specs])


def keys_of(study: Trained) -> list[str]:
    return [spec.run_key for spec in study.specs]


def wait(until: Callable[[], object], recorder: Recorder) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline, recorder.problem
        time.sleep(0.01)


def untrained(study: Trained) -> Trained:
    for spec in study.specs:
        study.store.files.delete(f"runs/{spec.run_key}")
        study.store.write_spec(spec)
    study.store.files.delete("families")
    return study


def test_only_what_has_news_is_looked_at(study):
    first, second = keys_of(study)
    noted = Noted()
    recorder = Recorder(noted)
    recorder.expect(study.specs)
    recorder.take([])
    assert not recorder._thread.ident  # MLflow is loaded when there is something to say
    recorder.take([second, "of another study"])
    wait(lambda: noted.recorded, recorder)
    recorder.take([first])
    recorder.take([second])
    wait(lambda: sum(map(len, noted.recorded)) == 3, recorder)
    recorder.stop()
    assert noted.recorded[0] == [second]
    assert sorted(key for keys in noted.recorded[1:] for key in keys) == sorted([first, second])


def test_news_that_could_not_be_sent_is_sent_later(study):
    noted = Noted(failures=3)
    recorder = Recorder(noted, study.specs)
    recorder.take(keys_of(study))
    wait(lambda: noted.recorded, recorder)
    recorder.stop()
    assert sorted({key for keys in noted.recorded for key in keys}) == sorted(keys_of(study))
    assert recorder.problem == ""


def test_a_study_is_followed_while_it_is_trained(study):
    """As the driver does: a word of the workers leads to a look, what is seen to a word to the recorder."""
    untrained(study)
    recorder, watcher = Recorder(tracker_of(study)), Watcher(study.store)
    recorder.expect(study.specs)

    def tell(folder: str, what: str) -> None:
        if folder.startswith("runs/"):
            recorder.take({event.run_key for event in watcher.look([folder.removeprefix("runs/")])})

    train(study, tell=tell)
    client = client_of(study)
    wait(lambda: recorder.run_ids and {run.info.status for run in runs_of(client)[1]} == {"FINISHED"}, recorder)
    recorder.take(keys_of(study))  # a word too many
    recorder.stop()
    assert recorder.complete([], [], status="FINISHED")
    assert len(runs_of(client)[1]) == 2
    for run in runs_of(client)[1]:
        points = points_of(client, run)
        assert len({point[:2] for point in points}) == len(points) > 20


def test_an_unreachable_server_is_reported_and_never_raised(study):
    recorder = Recorder(Tracker(study.store, Target("http://127.0.0.1:9"), "toy"), study.specs)
    recorder.take(keys_of(study))
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
    recorder.take(keys_of(study))
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
