"""The rule book of lanes, driven by random lanes that work, die and come back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalespec.orchestrator.engine.board import MOST_LANES, MOST_STARTS, Board, wanted
from scalespec.orchestrator.study.units import Unit


def unit(number: int, seconds: float = 1.0, workers: int = 1, family: str | None = None) -> Unit:
    return Unit(number, family or f"family-{number}", (f"run-{number}",), workers, seconds)


def test_longest_first():
    board = Board()
    board.add([unit(0, 1.0), unit(1, 3.0), unit(2, 2.0)])
    assert [board.take("a", 1, "x", turn).number for turn in range(3)] == [1, 2, 0]
    assert board.take("a", 1, "x", 3) is None
    assert board.waiting() == ["a"]
    assert board.idle


def test_every_rank_of_a_group_gets_the_same_in_the_same_turn():
    board = Board()
    board.add([unit(n, workers=2) for n in range(3)])
    fast = [board.take("a", 2, "x", turn).number for turn in range(3)]
    slow = [board.take("a", 2, "x", turn).number for turn in range(3)]
    assert fast == slow


def test_ranks_that_are_ahead_wait_for_the_one_that_commits():
    board = Board()
    board.add([unit(0, 2.0, workers=2), unit(1, workers=2)])
    assert board.take("a", 2, "x", 0, leads=False) is None
    assert board.take("a", 2, "x", 0).number == 0
    assert board.take("a", 2, "x", 0, leads=False).number == 0
    assert board.take("a", 2, "x", 1, leads=False) is None
    assert board.finished == set(), "the first rank has not said so"
    assert board.take("a", 2, "x", 1).number == 1
    board.close(["a"])
    assert board.take("a", 2, "x", 2) == "close"
    assert board.take("a", 2, "x", 2, leads=False) == "close"


def test_a_restarted_group_goes_on_with_its_unit():
    board = Board()
    board.add([unit(0, 2.0), unit(1)])
    assert board.take("a", 1, "first life", 0).number == 0
    assert board.take("a", 1, "second life", 0).number == 0
    board.claimed("a")
    assert board.take("a", 1, "second life", 1).number == 1


def test_what_an_ended_attempt_left_waiting_gets_nothing():
    board = Board()
    board.add([unit(0, 2.0), unit(1)])
    assert board.take("a", 1, "first life", 0).number == 0
    assert board.take("a", 1, "second life", 0).number == 0
    assert board.take("a", 1, "first life", 1) == "stop"
    assert board.finished == set()


def test_a_lane_that_never_reaches_a_run_stops():
    board = Board()
    board.add([unit(0)])
    for life in range(MOST_STARTS):
        assert board.take("a", 1, str(life), 0).number == 0
    assert board.take("a", 1, "one too many", 0) == "stop"
    board.gone("a", "no import")
    assert board.take("b", 1, "x", 0).number == 0, "another lane takes it over"
    for _ in range(MOST_LANES - 1):
        board.gone("b", "no import")
    assert board.given_up == {0: "no import"}
    assert board.idle


def test_a_lane_that_must_not_train_gets_nothing_and_says_why():
    board = Board()
    board.add([unit(0)])
    board.refuse("a", 1, "other code")
    assert board.take("a", 1, "x", 0) == "stop"
    assert board.gone("a", "") == "other code"
    assert board.pending == [0]


def test_a_family_is_in_one_lane_at_a_time():
    board = Board()
    board.add([unit(0, 2.0, family="f"), unit(1, 1.0, family="f")])
    assert board.take("a", 1, "x", 0).number == 0
    assert board.take("b", 1, "y", 0) is None
    assert board.take("a", 1, "x", 1).number == 1


def test_a_closing_lane_finishes_what_it_has():
    board = Board()
    board.add([unit(0), unit(1)])
    assert board.take("a", 1, "x", 0).number == 0
    board.close(["a"])
    assert board.take("a", 1, "x", 1) == "close"
    assert board.pending == [1]
    assert 0 in board.finished


@pytest.mark.parametrize(
    ("work", "alive", "room", "expected"),
    [
        ({1: 5}, {}, {1: 2, 2: 1}, {1: 2}),
        ({1: 1}, {}, {1: 2, 2: 1}, {1: 1}),
        ({1: 5}, {1: 2}, {1: 2, 2: 1}, {}),
        ({2: 1}, {1: 2}, {1: 2, 2: 1}, {1: -2, 2: 1}),
        ({2: 1, 1: 3}, {1: 2}, {1: 2, 2: 1}, {}),
        ({2: 1, 1: 3}, {}, {1: 2, 2: 1}, {2: 1}),
        ({2: 1, 1: 3}, {}, {1: 4, 2: 2}, {2: 1, 1: 2}),
        ({1: 3}, {2: 1}, {1: 2, 2: 1}, {2: -1, 1: 2}),
    ],
)
def test_lanes_that_are_wanted(work, alive, room, expected):
    assert wanted(work, alive, room) == expected


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_unit_is_finished_once_or_given_up(data):
    """Lanes of two sizes work, die, stop and are replaced in any order: nothing is lost and nothing runs in two places."""
    board, room, names = Board(), {1: 2, 2: 1}, 0
    sizes = data.draw(st.lists(st.sampled_from([1, 1, 2]), min_size=1, max_size=8))
    board.add([unit(n, float(n % 3), size, f"family-{n // 2}-{size}") for n, size in enumerate(sizes)])
    turns: dict[str, tuple[str, int]] = {}
    for _ in range(400):
        if board.idle:
            break
        alive = {size: sum(lane.workers == size for lane in board.lanes.values()) for size in (1, 2)}
        for size, count in wanted(board.work(), alive, room).items():
            for _ in range(count):
                names += 1
                turns[f"lane-{names}"] = ("0", int(isinstance(board.take(f"lane-{names}", size, "0", 0), Unit)))
            if count < 0:
                board.close([name for name, lane in board.lanes.items() if lane.workers == size])
        if not board.lanes:
            continue
        name = data.draw(st.sampled_from(sorted(board.lanes)))
        attempt, turn = turns[name]
        event = data.draw(st.sampled_from(["works", "works", "works", "dies", "is lost"]))
        if event == "is lost":
            board.gone(name, "a node went away")
            continue
        if event == "dies":
            attempt, turn = str(int(attempt) + 1), 0
        else:
            board.claimed(name)
        answer = board.take(name, board.lanes[name].workers, attempt, turn)
        turns[name] = (attempt, turn + (isinstance(answer, Unit)))
        if isinstance(answer, str):
            board.gone(name, answer)
        held = [lane.current for lane in board.lanes.values() if lane.current is not None]
        assert len(held) == len(set(held))
        families = [board.units[number].family_key for number in held]
        assert len(families) == len(set(families))
    accounted = board.finished | set(board.given_up) | set(board.pending)
    accounted |= {lane.current for lane in board.lanes.values() if lane.current is not None}
    assert accounted == set(board.units)
