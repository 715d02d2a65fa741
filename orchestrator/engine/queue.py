"""The queue that lanes pull from: the board of `board` in one actor, and word of what they commit.

Lanes wait here for their next unit and tell what they have committed; the driver waits here for news. What a lane tells is a hint
where to look: what counts is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scalespec.orchestrator.engine.board import Board
from scalespec.orchestrator.study.units import Unit

Hint = tuple[str, str, str]
"""(lane, folder, what): a folder of the study in which something was committed; what: claim | commit | result."""


@dataclass(frozen=True)
class News:
    """What the driver needs to know of the lanes at one moment."""

    hints: tuple[Hint, ...]
    read: int
    """Hints so far; ask for later ones with it."""
    waiting: Mapping[str, int]
    """Lane without work → number of its workers."""
    work: Mapping[int, int]
    """Number of workers → units pending or in a lane."""
    running: tuple[str, ...]
    """Keys of the runs in units that lanes have."""
    given_up: Mapping[str, str]
    """run_key → why no lane will train it."""


class Queue:
    """An actor that takes no CPU."""

    def __init__(self) -> None:
        self.board = Board()
        self._hints: list[Hint] = []
        self._changed = asyncio.Condition()
        self._version = 0

    async def _change(self) -> None:
        async with self._changed:
            self._version += 1
            self._changed.notify_all()

    async def add(self, units: Sequence[Unit]) -> None:
        """More work."""
        self.board.add(units)
        await self._change()

    async def take(self, lane: str, workers: int, attempt: str, turn: int, leads: bool = True) -> dict[str, Any] | str:
        """The unit of a lane's turn, or `close` or `stop`; waits as long as there is neither."""
        waited = False
        while True:
            found = self.board.take(lane, workers, attempt, turn, leads=leads)
            version = self._version
            if found is not None or not waited:
                # news for the driver: this lane has work, or has none
                await self._change()
                version += 1
            if found is not None:
                return asdict(found) if isinstance(found, Unit) else found
            waited = True
            async with self._changed:
                await self._changed.wait_for(lambda: self._version != version)  # noqa: B023  (evaluated before the next turn)

    async def tell(self, lane: str, folder: str, what: str) -> None:
        """A lane has committed something in a folder of the study."""
        if what == "claim":
            self.board.claimed(lane)
        self._hints.append((lane, folder, what))
        if what == "result":  # the driver looks at everything else by the second
            await self._change()

    async def refuse(self, lane: str, workers: int, why: str) -> None:
        """A worker of this lane must not train."""
        self.board.refuse(lane, workers, why)
        await self._change()

    async def close(self, lanes: Sequence[str]) -> None:
        """These lanes end when they have finished what they are at."""
        self.board.close(lanes)
        await self._change()

    async def gone(self, lane: str, why: str) -> str:
        """A lane has ended. Returns why."""
        why = self.board.gone(lane, why)
        await self._change()
        return why

    async def news(self, after: int, version: int, timeout_s: float) -> tuple[News, int]:
        """What has happened since hint `after`; waits for a change since `version`, at most `timeout_s`."""
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self._version != version)
            except TimeoutError:
                pass
        board = self.board
        waiting = {name: board.lanes[name].workers for name in board.waiting()}
        given_up = {key: why for number, why in board.given_up.items() for key in board.units[number].run_keys}
        news = News(
            hints=tuple(self._hints[after:]),
            read=len(self._hints),
            waiting=waiting,
            work=board.work(),
            running=tuple(board.running()),
            given_up=given_up,
        )
        return news, self._version
