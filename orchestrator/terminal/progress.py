"""Progress and the time left: a bar on a terminal, a line now and then in a job's log."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=False, highlight=False, soft_wrap=True)

LINE_EVERY_S = 15.0


def say(text: str) -> None:
    """One line to the user."""
    console.print(text, markup=False)


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


class Follow:
    """Shows how many of the runs are finished, until closed. `finished` reads the disk and gives the keys that are.

    `seconds` are the estimates by run; the time left is what they say, corrected by how fast the finished ones really were.
    """

    def __init__(self, seconds: Mapping[str, float], lanes: int, finished: Callable[[], Mapping[str, str]]) -> None:
        self.seconds, self.lanes, self.finished = dict(seconds), max(1, lanes), finished
        self.began = time.monotonic()
        self.first: tuple[float, float] | None = None
        self.said = self.began
        self._stop = threading.Event()
        self._known: dict[str, str] = {}
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def __enter__(self) -> Follow:
        self._bar: Progress | None = None
        if console.is_terminal and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("training", total=len(self.seconds), left="")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        if self._bar is not None:
            self._bar.stop()

    def _loop(self) -> None:
        while not self._stop.wait(1.0):
            try:
                found = {key: state for key, state in self.finished().items() if key in self.seconds}
            except OSError:
                continue
            for key in found.keys() - self._known.keys():
                if found[key] != "done":
                    say(f"  {key}: {found[key]}")
            self._known = dict(found)
            self._show()

    def left(self) -> float | None:
        """Seconds until the last run ends; None before the first has ended.

        At the pace since that first end, so that the start-up before it does not count; until a tenth of the work has been
        done at that pace, at the estimated one.
        """
        done, total = sum(self.seconds[key] for key in self._known), sum(self.seconds.values())
        if not done:
            return None
        now = time.monotonic()
        self.first = self.first or (now, done)
        since, before = self.first
        measured = done - before >= 0.1 * total and now > since
        return (total - done) / ((done - before) / (now - since) if measured else self.lanes)

    def _show(self) -> None:
        left = self.left()
        words = "" if left is None else f"about {duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=len(self._known), left=words)
        elif time.monotonic() - self.said > LINE_EVERY_S:
            self.said = time.monotonic()
            say(f"training: {len(self._known)} of {len(self.seconds)} runs finished{', ' + words if words else ''}")
