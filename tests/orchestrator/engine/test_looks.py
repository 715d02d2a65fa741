"""When the driver looks at which runs."""

from __future__ import annotations

from typing import Any

import pytest

from scalespec.orchestrator.engine import looks
from scalespec.orchestrator.engine.looks import LOOK_S, SWEEP_S, Looks
from scalespec.orchestrator.engine.queue import News


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(looks.time, "monotonic", lambda: now[0])
    return now


def news(*hints: tuple[str, str], work: int = 1, running: tuple[str, ...] = ()) -> News:
    return News(
        tuple(("lane-1", folder, what) for folder, what in hints), 0, {}, {1: work} if work else {}, running, {}
    )


def due(one: Looks, *hints: tuple[str, str], queued: Any = (), results: Any = (), **named: Any) -> list[str]:
    return one.due(news(*hints, **named), queued, results)


def test_what_was_told_is_looked_at_by_the_second_together(clock):
    one = Looks()
    assert due(one, ("runs/b", "commit")) == ["b"]
    clock[0] += LOOK_S / 2
    assert due(one, ("runs/b", "commit"), ("families/f", "claim")) == []
    assert due(one, ("runs/a", "claim")) == []
    clock[0] += LOOK_S
    assert due(one) == ["a", "b"]
    clock[0] += LOOK_S
    assert due(one) == []


def test_a_result_is_looked_at_at_once_with_what_was_told_before(clock):
    one = Looks()
    due(one)
    assert due(one, ("runs/a", "commit")) == []
    assert due(one, ("runs/b", "result")) == ["a", "b"]


def test_now_and_then_all_that_is_in_a_lane_is_looked_at(clock):
    one = Looks()
    assert due(one, running=("a", "b")) == []
    clock[0] += SWEEP_S
    assert due(one, running=("a", "b")) == ["a", "b"]
    clock[0] += SWEEP_S / 2
    assert due(one, running=("a", "b")) == []


def test_when_lanes_have_nothing_left_whatever_has_no_result_is_looked_at(clock):
    one = Looks()
    assert due(one, work=0, queued={"a", "b"}, results={"a": {}}) == ["b"]
    assert due(one, work=0, queued={"a", "b"}, results={"a": {}, "b": {}}) == []
