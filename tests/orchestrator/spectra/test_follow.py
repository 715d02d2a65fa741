"""Spectra beside training: each checkpoint once, when a CPU is lent; the rest at the end; a later driver finds what is there."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from trained import Trained, jobs, prepared, trained

from scalespec.orchestrator.engine.worker import Worker
from scalespec.orchestrator.spectra import follow, stage
from scalespec.orchestrator.spectra.follow import Follower
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.run_tables import checkpoints_table
from scalespec.orchestrator.store.watch import Watcher

SMALL: dict[str, Any] = {
    "grid": {"width": [16], "data_fraction": ["1", "1/2"], "seed": [0, 1]},
    "data": {"limit": 512},
    "train": {"checkpoints": 4},
}
LAYERS = ("hidden.weight", "inner.weight", "head.weight")
WW = "ww-0.7.7"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Trained:
    """Two families of two runs each; not to be changed."""
    return trained(tmp_path_factory.mktemp("followed") / "toy", **SMALL)


@pytest.fixture
def study(done, tmp_path) -> Trained:
    shutil.copytree(done.store.root, tmp_path / "toy")
    return Trained(done.study, done.grid, StudyStore(str(tmp_path / "toy")))


@pytest.fixture
def computed(monkeypatch) -> list[stage.Reference]:
    """What the stage was given, in turn."""
    out: list[stage.Reference] = []
    run_stage = stage.run_stage

    def noted(store, refs, request, cpus, *, lent=False):
        out.extend(refs)
        return run_stage(store, refs, request, cpus, lent=lent)

    monkeypatch.setattr(stage, "run_stage", noted)
    return out


class Followed:
    """A follower and the driver's part: events from a watcher, CPUs lent."""

    def __init__(self, study: Trained, every: str = "checkpoint") -> None:
        self.study, self.watcher = study, Watcher(study.store)
        self.follower = Follower(study.store, every, WW, vectors=False)
        self.follower.expect(study.specs)

    def begin(self) -> Followed:
        self.take(self.watcher.begin(spec.run_key for spec in self.study.specs))
        return self

    def look(self) -> None:
        self.take(self.watcher.look(spec.run_key for spec in self.study.specs))

    def take(self, events: list[Any]) -> None:
        ended = [event.run_key for event in events if event.what == "result"]
        self.follower.take(events, {key: int(self.watcher.results[key]["steps"]) for key in ended})

    def wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end
            time.sleep(0.01)


def everything(study: Trained) -> Counter[tuple[str, int, str]]:
    """run_key, step and layer of every checkpoint on disk."""
    rows = checkpoints_table(study.store, study.specs).to_pylist()
    return Counter((row["run_key"], row["step"], layer) for row in rows for layer in LAYERS)


def found(study: Trained) -> Counter[tuple[str, int, str]]:
    rows = stage.stored(study.store).to_pylist()
    return Counter((row["run_key"], row["step"], row["layer"]) for row in rows)


def test_checkpoints_are_computed_while_their_runs_go_on_and_each_file_once(tmp_path, computed):
    study = prepared(tmp_path / "toy", **SMALL)
    followed = Followed(study).begin()
    missing: list[bool] = []

    def tell(folder: str, what: str) -> None:
        followed.look()
        followed.follower.lend(1)
        if what == "result":
            missing.append(followed.follower.missing(study.specs))
            followed.wait(lambda: not followed.follower.busy)

    Worker(study.store, "session-1", None, tell=tell).run(jobs(study))
    assert missing == [True] * 4, "until its last run is finished and looked at"
    assert not followed.follower.missing(study.specs)
    assert found(study) == everything(study)
    assert max(Counter((ref.path, ref.layer) for ref in computed).values()) == 1
    before = len(computed)
    followed.follower.rest(1)
    assert len(computed) == before


def test_without_a_cpu_nothing_is_computed_before_the_end(done, study, computed):
    followed = Followed(study).begin()
    followed.follower.lend(0)
    assert followed.follower.busy
    assert followed.follower.missing(study.specs)
    time.sleep(0.1)
    assert computed == []
    followed.follower.rest(1)
    assert found(study) == everything(study)
    # a trunk's checkpoints are one content in all runs of the family
    assert len(computed) < sum(everything(study).values())
    assert not followed.follower.missing(study.specs)


def test_a_later_driver_computes_nothing_and_looks_into_one_run_of_a_model(study, computed, monkeypatch):
    Followed(study).begin().follower.rest(1)
    computed.clear()
    look, looked = follow.run_tables.checkpoint_rows, []
    monkeypatch.setattr(follow.run_tables, "checkpoint_rows", lambda *args: looked.append(args) or look(*args))
    followed = Followed(study).begin()
    followed.follower.lend(1)
    followed.wait(lambda: not followed.follower.busy)
    assert computed == []
    assert len(looked) == 1
    assert not followed.follower.missing(study.specs)


@pytest.mark.parametrize("layer", [None, "hidden.weight"])
def test_a_stage_that_was_killed_in_the_middle_is_made_whole(study, computed, layer):
    """The costliest matrices are computed first, so every checkpoint may lack some layers, or some may lack all."""
    Followed(study).begin().follower.rest(1)
    (part,) = Path(study.store.root, "spectra").glob("*.parquet")
    rows = stage.stored(study.store)
    part.unlink()
    table = rows.slice(0, rows.num_rows // 2) if layer is None else rows.filter(pc.equal(rows["layer"], layer))
    stage._commit(study.store, [table])
    kept = found(study)
    computed.clear()
    Followed(study).begin().follower.rest(1)
    assert found(study) == everything(study)
    again = {key for ref in computed for key in ref.keys}
    assert again
    assert not again & set(kept)


def test_every_last_computes_the_final_weights_when_a_run_has_ended(tmp_path, computed):
    study = prepared(tmp_path / "toy", **SMALL)
    followed = Followed(study, "last").begin()

    def tell(folder: str, what: str) -> None:
        followed.look()
        followed.follower.lend(1)
        followed.wait(lambda: not followed.follower.busy)

    Worker(study.store, "session-1", None, tell=tell).run(jobs(study))
    ends = {spec.run_key: study.store.run(spec.run_key).result()["steps"] for spec in study.specs}
    assert found(study) == Counter((key, step, layer) for key, step in ends.items() for layer in LAYERS)
    assert not followed.follower.missing(study.specs)
    computed.clear()
    Followed(study, "last").begin().follower.rest(1)
    assert computed == []


def test_every_never_computes_nothing_and_nobody_waits_for_it(study, computed):
    followed = Followed(study, "never").begin()
    followed.look()
    followed.follower.lend(2)
    assert not followed.follower.busy
    assert not followed.follower.missing(study.specs)
    followed.follower.rest(2)
    assert computed == []
    assert not Path(study.store.root, "spectra").exists()


def test_a_diverged_run_has_spectra_of_what_it_left(tmp_path):
    study = trained(tmp_path / "toy", **SMALL, task={"name": "toy_task:Toy", "explode_width": 16})
    Followed(study).begin().follower.rest(1)
    assert found(study) == everything(study) != Counter()


@pytest.mark.parametrize("times", [1, 99])
def test_what_goes_wrong_beside_training_is_tried_again_and_left_to_the_end(study, monkeypatch, caplog, times):
    monkeypatch.setattr(follow, "RETRY_S", 0.01)
    run_stage, failures = stage.run_stage, []

    def failing(*arguments: Any, lent: bool = False, **named: Any) -> int:
        if lent and len(failures) < times:
            failures.append(1)
            raise OSError("the storage is away")
        return run_stage(*arguments, lent=lent, **named)

    monkeypatch.setattr(stage, "run_stage", failing)
    followed = Followed(study).begin()
    with caplog.at_level(logging.ERROR):
        followed.follower.lend(1)
        followed.wait(lambda: not followed.follower.busy)
    assert "the storage is away" in caplog.text
    assert len(failures) == min(times, follow.TRIES), "a pass that cannot be must not keep the driver waiting for ever"
    assert followed.follower.missing(study.specs) is (times > 1)
    followed.follower.rest(1)
    assert found(study) == everything(study)


def test_a_checkpoint_that_was_told_of_while_the_storage_was_away_is_found_at_the_end_of_its_run(study, monkeypatch):
    followed = Followed(study)
    row, gone = follow.run_tables.checkpoint_row, [True]

    def away(store, run_key, step, path):
        return None if gone[0] and step > 0 else row(store, run_key, step, path)

    monkeypatch.setattr(follow.run_tables, "checkpoint_row", away)
    followed.look()
    gone[0] = False
    followed.follower.rest(1)
    assert found(study) == everything(study)
