"""Progress and the time left: a bar on a terminal, a line now and then in a job's log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=False, highlight=False, soft_wrap=True)

LINE_EVERY_S = 15.0


def say(text: str) -> None:
    """One line to the user."""
    console.print(text, markup=False)


def say_aside(text: str) -> None:
    """One line on standard error, where it does not mix with what was asked for."""
    print(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`; `–` where it is not known."""
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Shows how many of the runs asked for are finished. The driver says what there is to show, and when.

    The time left is what the estimates say, corrected by how fast the finished runs really were.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lanes = 1
        self.began = self.said = time.monotonic()
        self.first: tuple[float, float] | None = None
        self._done: set[str] = set()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if console.is_terminal and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = rich.progress.Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("training", total=None, left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, seconds: Mapping[str, float], lanes: int) -> None:
        """More runs, with the estimate of each."""
        self.seconds |= seconds
        self.lanes = max(1, lanes)

    def finished(self, key: str, state: str) -> None:
        """A run has its result; one that is not `done` is said."""
        if key in self.seconds and key not in self._done:
            self._done.add(key)
            if state != "done":
                say(f"  {key}: {state}")

    def left(self) -> float | None:
        """Seconds until the last run ends; None before the first has ended.

        At the pace since that first end, so that the start-up before it does not count; until a tenth of the work has been
        done at that pace, at the estimated one.
        """
        done, total = sum(self.seconds[key] for key in self._done), sum(self.seconds.values())
        if not done:
            return None
        now = time.monotonic()
        self.first = self.first or (now, done)
        since, before = self.first
        measured = done - before >= 0.1 * total and now > since
        return (total - done) / ((done - before) / (now - since) if measured else self.lanes)

    def show(self) -> None:
        """Draws the bar, or says a line now and then where there is no terminal."""
        left = self.left()
        words = "" if left is None else f"about {duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=len(self._done), total=len(self.seconds), left=words)
        elif time.monotonic() - self.said > LINE_EVERY_S:
            self.said = time.monotonic()
            say(f"training: {len(self._done)} of {len(self.seconds)} runs finished{', ' + words if words else ''}")
