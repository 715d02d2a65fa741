"""What the driver and Tune's thread share of the lanes, and what both need to say of one."""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalespec.orchestrator.engine.board import MOST_STARTS

HEAD = {"node:__internal_head__": 0.001}
"""A group's driver takes no CPU: with 0.01 of one each, two one-CPU lanes would run one after the other on two CPUs."""


@dataclass
class Wishes:
    """What the driver and Tune's thread share."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    wanted: collections.deque[dict[str, Any]] = field(default_factory=collections.deque)
    alive: dict[str, int] = field(default_factory=dict)
    """Lane → number of its workers, from the moment it is wanted until the queue knows that it has ended."""
    ended: list[tuple[str, str]] = field(default_factory=list)
    """(lane, why), until the driver has told the queue."""
    idle_deaths: collections.Counter[str] = field(default_factory=collections.Counter)
    """Lane → deaths since its last claim of a run."""
    finished: bool = False

    def left(self) -> set[str]:
        """Lanes that are wanted or there."""
        return self.alive.keys() - {lane for lane, _ in self.ended}


def is_local(config: Mapping[str, Any]) -> bool:
    """Whether the trial is itself the worker."""
    return bool(config["workers"] == 1 and not config["use_gpu"])


def words_of(text: str) -> str:
    """What ended a lane, in one line, from what Ray says of it: the last line, since the ones before are a traceback.

    Of a group the first worker's error: the others often fail for want of it. Ray's guesses at why a process died are left out.
    """
    first, *ranks = re.split(r"^\[Rank .*\]:$", text, flags=re.MULTILINE)
    lines = [line.strip() for line in (ranks or [first])[0].splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes include:")[0] if lines else "its process died"


def stops(deaths: int) -> bool:
    """Whether a lane that has died so often without claiming a run is given up."""
    return deaths >= MOST_STARTS
