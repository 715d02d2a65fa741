"""Which lane gets which unit of work: a pure rule book, kept by one actor (`queue`).

A lane is a worker group that lives as long as the study has work for its size. A unit is what must stay in one lane: the runs of
a family that share a trunk, or a single run. Longest first; a family that another lane is at work on waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scalespec.orchestrator.study.units import Unit

MOST_STARTS = 3
"""A lane that has begun so often without claiming a run stops: what ends it will end it again."""

MOST_LANES = 2
"""A unit whose lane has stopped is given to another one; after so many lanes its runs stay missing."""


@dataclass
class Lane:
    """One worker group, as the board knows it."""

    workers: int
    taken: dict[str, list[int]] = field(default_factory=dict)
    """Attempt → numbers of the units that it was given, in turn: every rank of a group is given the same."""
    life: str = ""
    """The newest attempt: what an ended one has left waiting gets nothing more."""
    unled: bool = False
    """Whether this life was begun by a rank that does not lead."""
    last_word: str = ""
    """What ended it, for the ranks that ask later."""
    current: int | None = None
    starts: int = 0
    """Beginnings since the last claim of a run."""
    waiting: bool = False
    stopped: str = ""


@dataclass
class Board:
    """Units, lanes, and who has what."""

    units: dict[int, Unit] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)
    lanes: dict[str, Lane] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    given_up: dict[int, str] = field(default_factory=dict)
    """Unit → why no lane will take it."""
    to_close: set[str] = field(default_factory=set)
    """Lanes that are to end, those among them that have not begun yet too."""
    lost: dict[int, int] = field(default_factory=dict)
    """Unit → lanes that stopped while they had it."""

    def add(self, units: Sequence[Unit]) -> None:
        """More work. Longest first: within 4/3 of the best makespan (Graham 1969, doi:10.1137/0117039)."""
        for unit in units:
            self.units[unit.number] = unit
            self.pending.append(unit.number)
        self.pending.sort(key=lambda number: -self.units[number].seconds)

    def take(self, name: str, workers: int, attempt: str, turn: int, *, leads: bool = True) -> Unit | str | None:
        """The unit of a lane's turn; `close` or `stop` to end the lane; None while there is nothing for it.

        `attempt` names one life of the worker group: a group that was restarted asks under a new name and is given the unit
        that it was at work on when it ended. Only the rank that `leads` moves on: it asks when its unit is committed, and the
        others may be ahead of it.
        """
        lane = self.lanes.setdefault(name, Lane(workers))
        begun = attempt not in lane.taken
        if begun:
            lane.life, lane.unled, lane.last_word = attempt, not leads, ""
        elif attempt != lane.life:
            return "stop"
        given = lane.taken.setdefault(attempt, [])
        if turn < len(given):
            return self.units[given[turn]]
        if not leads:
            return lane.last_word or None
        if begun or lane.unled:
            lane.unled = False
            lane.starts += 1
            if lane.starts > MOST_STARTS:
                lane.stopped = lane.stopped or f"it began {MOST_STARTS} times without reaching a run"
        elif lane.current is not None:
            self.finished.add(lane.current)
            lane.current = None
        if lane.stopped:
            lane.last_word = "stop"
            return "stop"
        if lane.current is None:
            lane.current = None if name in self.to_close else self._next(lane)
        lane.waiting = lane.current is None
        if lane.current is None:
            lane.last_word = "close" if name in self.to_close else ""
            return lane.last_word or None
        given.append(lane.current)
        return self.units[lane.current]

    def _next(self, lane: Lane) -> int | None:
        busy = {self.units[other.current].family_key for other in self.lanes.values() if other.current is not None}
        for number in self.pending:
            unit = self.units[number]
            if unit.workers == lane.workers and unit.family_key not in busy:
                self.pending.remove(number)
                return number
        return None

    def claimed(self, name: str) -> None:
        """A run was claimed in this lane: it works."""
        if name in self.lanes:
            self.lanes[name].starts = 0

    def refuse(self, name: str, workers: int, why: str) -> None:
        """This lane must not train."""
        self.lanes.setdefault(name, Lane(workers)).stopped = why

    def close(self, names: Sequence[str]) -> None:
        """These lanes end when they have finished what they are at."""
        self.to_close |= set(names)

    def gone(self, name: str, why: str) -> str:
        """A lane has ended for good. What it had goes back, unless it has cost several lanes already. Returns why it ended."""
        lane = self.lanes.pop(name, None)
        why = why or (lane.stopped if lane else "")
        if lane is None or lane.current is None or lane.current in self.finished:
            return why
        number = lane.current
        self.lost[number] = self.lost.get(number, 0) + 1
        if self.lost[number] < MOST_LANES:
            self.add([self.units[number]])
        else:
            self.given_up[number] = why
        return why

    def waiting(self, workers: int | None = None) -> list[str]:
        """Lanes that have nothing to do."""
        return [name for name, lane in self.lanes.items() if lane.waiting and workers in (None, lane.workers)]

    def work(self) -> dict[int, int]:
        """Number of workers → units pending or in a lane."""
        out: dict[int, int] = {}
        held = [lane.current for lane in self.lanes.values() if lane.current is not None]
        for number in [*self.pending, *held]:
            size = self.units[number].workers
            out[size] = out.get(size, 0) + 1
        return out

    def running(self) -> list[str]:
        """Keys of the runs in units that lanes have."""
        held = [lane.current for lane in self.lanes.values() if lane.current is not None]
        return [key for number in held for key in self.units[number].run_keys]

    @property
    def idle(self) -> bool:
        """Nothing pending, nothing in a lane."""
        return not self.work()


def wanted(work: Mapping[int, int], alive: Mapping[int, int], room: Mapping[int, int]) -> dict[int, int]:
    """How many lanes of each size to start (positive) or to close (negative).

    `work`: units by number of workers; `alive`: lanes that are there or starting; `room`: lanes of a size that fit when nothing
    else is there. A size without work gives way when another one needs its room; larger groups go first.
    """
    out: dict[int, int] = {}
    used = sum(count / room[size] for size, count in alive.items() if count)
    for size in sorted(work, reverse=True):
        need = min(work[size], room[size]) - alive.get(size, 0)
        if need <= 0:
            continue
        for other, count in alive.items():
            if need > _free(used, room[size]) and other != size and count and not work.get(other) and other not in out:
                # a lane that starts takes as long as one that closes: both at once
                out[other] = -count
                used -= count / room[other]
        start = min(need, _free(used, room[size]))
        if start:
            out[size] = start
            used += start / room[size]
    return out


def _free(used: float, room: int) -> int:
    """Lanes that still fit where `used` is the share of the machine that is taken."""
    return max(0, int((1 - used) * room + 1e-9))
