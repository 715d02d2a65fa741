"""The work in hand, with lanes that only note what they are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from scalespec.orchestrator.engine import work
from scalespec.orchestrator.engine.lanes import ANSWER_S, NoRoomError, check_room
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.engine.work import Work
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.units import Unit
from studies import toy

SMALL: dict[str, Any] = {"grid": {"width": [8, 16], "data_fraction": ["1"], "seed": [0, 1]}, "data": {"limit": 256}}


class Lanes:
    """Lanes of a test: `now` is what they will tell."""

    made: Lanes

    def __init__(self, settings: Any, machine: Machine) -> None:
        self.settings, self.machine, self.problems = settings, machine, list[str]()
        self.units: list[Unit] = []
        self.there: Counter[int] = Counter()
        self.now = News((), 0, {}, {}, (), {})
        self.finished: float | None = None
        Lanes.made = self

    def add(self, units: Sequence[Unit]) -> None:
        for unit in units:
            check_room(unit.workers, self.machine)
        self.units += units

    def news(self, timeout_s: float) -> News:
        return self.now

    def alive(self) -> dict[int, int]:
        return {size: count for size, count in self.there.items() if count}

    def adjust(self, changes: Mapping[int, int], waiting: Mapping[str, int]) -> None:
        self.there.update(changes)

    def finish(self, timeout_s: float) -> None:
        self.finished = timeout_s


@pytest.fixture
def made(monkeypatch):
    """Makes the work of a study on a machine; with its grid's runs."""
    monkeypatch.setattr(work, "Lanes", Lanes)
    monkeypatch.setattr("scalespec.orchestrator.engine.probe.PROBE_S", 0.01)

    def make(machine: Machine, **changes: Any) -> tuple[Work, list[Any]]:
        study, points = toy(**{**SMALL, **changes}), Expander()
        return Work(study, points, "/root", "session", machine), list(points(study))

    return make


def test_every_ask_goes_on_counting_and_is_part_of_the_plan(made):
    hands, runs = made(Machine(2, 0))
    assert not hands.begun
    first = hands.queue(runs, runs[:1], runs)
    second = hands.queue(runs, runs[1:], runs)
    assert hands.queued == {spec.run_key for spec in runs}
    assert [unit.number for unit in Lanes.made.units] == list(range(4))
    assert hands.planned.units == first.units + second.units
    assert {run.run_key for run in hands.planned.runs} == hands.queued
    assert all(len(unit.jobs) == len(unit.run_keys) for unit in Lanes.made.units)
    settings = Lanes.made.settings
    assert (settings.root, settings.session, settings.threads, settings.use_gpu) == ("/root", "session", 1, False)
    assert settings.fingerprint == work.fingerprint()


def test_a_group_without_room_is_refused_and_counts_as_not_handed_out(made):
    hands, runs = made(Machine(2, 0), train={"workers": 4})
    with pytest.raises(NoRoomError, match="4 workers need 4 CPUs"):
        hands.queue(runs, runs, runs)
    assert hands.queued == set()


def test_as_many_lanes_as_there_is_work_and_room_for(made):
    hands, runs = made(Machine(2, 0))
    hands.queue(runs, runs, runs)
    Lanes.made.now = News((), 0, {}, {1: 4}, (), {})
    for _ in range(3):
        hands.news(0.0)
        assert Lanes.made.alive() == {1: 2}
    Lanes.made.now = News((), 0, {"lane-1": 1, "lane-2": 1}, {2: 1}, (), {})
    hands.news(0.0)
    assert Lanes.made.alive() == {2: 1}


@pytest.mark.parametrize(
    ("machine", "there", "waiting", "free"),
    [
        (Machine(2, 0), {1: 2}, {}, 0),
        (Machine(2, 0), {1: 2}, {"a": 1}, 1),
        (Machine(2, 0), {1: 2}, {"a": 1, "b": 1}, 2),
        (Machine(2, 0), {2: 1}, {}, 0),
        (Machine(2, 0), {2: 1}, {"a": 2}, 2),
        (Machine(2, 0), {1: 1}, {}, 1),
        (Machine(8, 0), {1: 7}, {}, 1),
    ],
)
def test_cpus_that_are_lent_are_those_of_lanes_that_wait(made, machine, there, waiting, free):
    hands, runs = made(machine)
    assert hands.free_cpus() == machine.cpus
    hands.queue(runs, runs, runs)
    Lanes.made.there.update(there)
    Lanes.made.now = News((), 0, waiting, {}, (), {})
    hands.news(0.0)
    assert hands.free_cpus() == free


def test_what_went_wrong_is_told_at_the_end(made):
    hands, runs = made(Machine(2, 0))
    assert hands.finish() == []
    hands.queue(runs, runs, runs)
    Lanes.made.problems.append("lane-1: KeyError: 'counts'")
    Lanes.made.now = News((), 0, {}, {}, (), {"run-0": "KeyError: 'counts'"})
    hands.news(0.0)
    assert hands.finish() == ["lane-1: KeyError: 'counts'", "run-0: KeyError: 'counts'"]
    assert Lanes.made.finished == ANSWER_S
    hands.finish(wait=False)
    assert Lanes.made.finished == 0, "who interrupts a study does not wait"
