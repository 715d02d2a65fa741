"""The driver's loop with lanes that are scripted: every study ends, whatever becomes of its runs and of words about them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from scalespec.orchestrator import run
from scalespec.orchestrator.engine import work
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.engine.worker import Job, Worker
from scalespec.orchestrator.run import Driver
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.lease import Lease, LeaseError, lease
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.study import Study
from scalespec.orchestrator.study.units import Unit
from studies import toy

SMALL: dict[str, Any] = {
    "data": {"limit": 256},
    "train": {"checkpoints": 2},
    "spectra": {"every": "never"},
    "report": False,
}
GRID = {"width": [8], "data_fraction": ["1"], "seed": [0, 1, 2]}
"""Three runs of a family each."""


class Scripted:
    """Lanes that train a unit at each look, in this process; `script` says what else becomes of one."""

    script: Callable[[Unit], str] = staticmethod(lambda unit: "trained")

    def __init__(self, settings: Any, machine: Machine) -> None:
        self.store, self.session = StudyStore(settings.root), settings.session
        self.problems: list[str] = []
        self.units: list[Unit] = []
        self.given_up: dict[str, str] = {}
        self.hints: list[tuple[str, str, str]] = []

    def add(self, units: list[Unit]) -> None:
        self.units += units

    def news(self, timeout_s: float) -> News:
        self.hints = []
        if self.units:
            self._take(self.units.pop(0))
        work = {1: len(self.units)} if self.units else {}
        return News(tuple(self.hints), 0, {}, work, (), dict(self.given_up))

    def _take(self, unit: Unit) -> None:
        what = type(self).script(unit)
        if what == "given up":
            self.given_up |= dict.fromkeys(unit.run_keys, "its process died")
            return
        tell = (lambda folder, what: None) if what == "unheard" else self._tell
        # the toy task plays its faults where it sees itself in a worker
        with mock.patch.dict(os.environ, RAY_RAYLET_PID="0"):
            Worker(self.store, self.session, None, tell=tell).run(Job.from_json(job) for job in unit.jobs)

    def _tell(self, folder: str, what: str) -> None:
        self.hints.append(("lane-1", folder, what))

    def alive(self) -> dict[int, int]:
        return {}

    def adjust(self, changes: Any, waiting: Any) -> None:
        pass

    def finish(self, timeout_s: float) -> None:
        pass


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """Drives a study to its end by a script of its lanes. Returns the driver."""
    monkeypatch.setattr(run, "LOOK_S", 0.01)
    monkeypatch.setattr("scalespec.orchestrator.engine.probe.PROBE_S", 0.01)
    monkeypatch.setattr(run, "target_of", lambda store, uri: None)

    def go(study: Study, script: Callable[[Unit], str] = lambda unit: "trained", lost: bool = False) -> Driver:
        lanes = type("Lanes", (Scripted,), {"script": staticmethod(script)})
        monkeypatch.setattr(work, "Lanes", lanes)
        store = StudyStore(str(tmp_path / "toy"))
        with lease(store) as held:
            driver = Driver(study, Expander(), store, _lost(held) if lost else held, Machine(2, 0))
            driver.train()
        return driver

    return go


def _lost(held: Lease) -> Lease:
    held.lost.set()
    return held


def test_a_grid_is_asked_for_once_and_done(drive):
    driver = drive(toy(**SMALL, grid=GRID))
    assert {result["status"] for result in driver.results.values()} == {"done"}
    assert (len(driver.results), len(driver.asks), driver.problems) == (3, 1, [])
    again = drive(toy(**SMALL, grid=GRID))
    assert (again.results, len(again.asks), again.work.begun) == (driver.results, 1, False)


@pytest.mark.parametrize("what", ["given up", "unheard"])
def test_runs_without_a_result_or_without_a_word_keep_nobody_waiting(drive, what):
    driver = drive(toy(**SMALL, grid=GRID), lambda unit: what if unit.number == 1 else "trained")
    if what == "unheard":  # nothing was told, but the disk is the truth
        assert len(driver.results) == 3
        assert driver.problems == []
    else:
        assert len(driver.results) == 2
        assert driver.problems[0] == "grid: 1 runs left"
        assert driver.problems[1:] == [f"{key}: its process died" for key in driver.work.queued - set(driver.results)]


def test_what_an_earlier_driver_has_left_is_taken_up(drive):
    first = drive(toy(**SMALL, grid=GRID), lambda unit: "given up" if unit.number else "trained")
    assert len(first.results) == 1
    second = drive(toy(**SMALL, grid=GRID))
    assert len(second.results) == 3
    assert len(second.asks) == 1, "what was asked for holds"
    assert second.work.queued == set(second.results) - set(first.results)


STAGES = [
    {"name": "bad", "role": "probe", "grid": {**GRID, "width": [12]}},
    {"name": "good", "role": "result", "grid": GRID},
    {"name": "last", "role": "result", "grid": GRID, "optim": {"lr": {"reading": "lr", "of": "bad", "times": 2}}},
]


def test_a_stage_that_rests_on_failed_runs_stops_and_the_others_are_done(drive):
    """The reading fails at every look, also while runs of another stage are in the lanes: those are not abandoned."""
    task = {"name": "toy_task:Toy", "raise_width": 12}
    driver = drive(toy(**SMALL, design=STAGES, task=task))
    states = sorted(result["status"] for result in driver.results.values())
    assert states == ["done"] * 3 + ["failed"] * 3
    (problem,) = driver.problems
    assert problem.startswith("stage last reads lr of bad, of which 3 runs failed")


def test_a_stage_whose_probes_were_given_up_says_what_it_waits_for(drive):
    driver = drive(toy(**SMALL, design=STAGES), lambda unit: "given up" if unit.number == 0 else "trained")
    assert len(driver.results) == 5
    assert "bad: 1 runs left; last waits for bad" in driver.problems


def test_stages_follow_each_other(drive):
    driver = drive(toy(**SMALL, design=STAGES))
    assert [ask.stage for ask in driver.asks] == ["bad", "good", "last"]
    assert len(driver.results) == 9
    assert driver.problems == []


def test_a_driver_that_has_lost_its_lease_stops(drive):
    with pytest.raises(LeaseError, match="another driver has taken over"):
        drive(toy(**SMALL, grid=GRID), lost=True)
