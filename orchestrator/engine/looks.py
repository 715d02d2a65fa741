"""When the driver looks at which runs: the lanes' hints, gathered."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from scalespec.orchestrator.engine.queue import News

LOOK_S = 1.0
"""Seconds between two looks; the live view moves as often."""

SWEEP_S = 30.0
"""Seconds between two looks at every run in a lane, in case a word got lost."""


@dataclass
class Looks:
    """A result is looked at at once, since something may wait for it; what else was told by the second, together."""

    _told: set[str] = field(default_factory=set)
    """Runs of which something was told since the last look."""
    _looked: float = 0.0
    _swept: float = field(default_factory=lambda: time.monotonic())

    def due(self, news: News, queued: Collection[str], results: Collection[str]) -> list[str]:
        """The runs to look at now. `queued`: all that lanes were given; `results`: those that have one."""
        hints = [(folder.removeprefix("runs/"), what) for _, folder, what in news.hints if folder.startswith("runs/")]
        self._told.update(key for key, _ in hints)
        now = time.monotonic()
        finished = any(what == "result" for _, what in hints)
        if not finished and news.work and now - self._looked < LOOK_S:
            return []
        self._looked, due, self._told = now, self._told, set()
        if not news.work:
            due.update(key for key in queued if key not in results)  # a word may have got lost, and no other will come
        elif now - self._swept >= SWEEP_S:
            self._swept = now
            due.update(news.running)
        return sorted(due)
