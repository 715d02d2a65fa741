"""Progress says how much is finished and how long the rest takes, by what was measured."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.orchestrator.terminal import progress
from scalespec.orchestrator.terminal.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (44.6, "45 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (math.inf, "–"),
        (math.nan, "–"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_before_the_first_end_nothing_is_promised(clock):
    shown = Progress()
    assert shown.left() is None
    shown.expect({"a": 10.0, "b": 10.0}, lanes=2)
    clock[0] += 100
    assert shown.left() is None


def test_the_time_left_is_the_estimate_until_the_pace_is_measured(clock):
    """Twenty runs of 10 s on two lanes, in truth half as fast; start-up before the first end says nothing of the pace."""
    shown = Progress()
    shown.expect({f"run-{n}": 10.0 for n in range(20)}, lanes=2)
    clock[0] += 500
    shown.finished("run-0", "done")
    assert shown.left() == pytest.approx(190 / 2)
    for number in range(1, 11):
        clock[0] += 10  # a run each 10 s: one estimated second a second, where two lanes were to give two
        shown.finished(f"run-{number}", "done")
    assert shown.left() == pytest.approx(90)


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30), st.integers(1, 8), st.floats(0.1, 10))
def test_the_time_left_is_never_negative_and_ends_at_nothing(seconds, lanes, pace):
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.time, "monotonic", lambda: now[0])
        shown = Progress()
        shown.expect({str(n): cost for n, cost in enumerate(seconds)}, lanes)
        for number, cost in enumerate(seconds):
            now[0] += cost / pace
            shown.finished(str(number), "done")
            left = shown.left()
            assert left is not None
            assert -1e-6 <= left < math.inf
        assert left == pytest.approx(0, abs=1e-6)


def test_a_further_ask_adds_to_what_is_left(clock):
    shown = Progress()
    shown.expect({"a": 10.0}, lanes=1)
    shown.finished("a", "done")
    assert shown.left() == 0
    shown.expect({"b": 30.0}, lanes=2)
    assert shown.left() == pytest.approx(15)


def test_what_is_not_done_is_said_once_and_strangers_are_passed_over(capsys):
    shown = Progress()
    shown.expect({"a": 1.0, "b": 1.0}, lanes=1)
    for _ in range(2):
        shown.finished("a", "failed (bug: KeyError: 'w')")
        shown.finished("b", "done")
        shown.finished("of another study", "failed")
    assert capsys.readouterr().out == "  a: failed (bug: KeyError: 'w')\n"
    assert shown.left() == 0


def test_in_a_log_a_line_is_said_now_and_then(clock, capsys):
    with Progress() as shown:
        shown.expect({"a": 60.0, "b": 60.0}, lanes=1)
        for _ in range(40):
            clock[0] += 1
            shown.show()
        first = capsys.readouterr().out.splitlines()
        assert first == ["training: 0 of 2 runs finished"] * 2
        shown.finished("a", "done")
        clock[0] += 20
        shown.show()
    assert capsys.readouterr().out == "training: 1 of 2 runs finished, about 1 min 00 s left\n"


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(monkeypatch):
    console = progress.Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    with Progress() as shown:
        shown.expect({"a": 60.0, "b": 60.0}, lanes=1)
        shown.finished("a", "done")
        shown.show()
        bar = shown._bar
        assert bar is not None
        (task,) = bar.tasks
        assert (task.completed, task.total) == (1, 2)
        assert task.fields["left"].startswith("about ")
    assert bar.live.is_started is False
