"""What a design says and what it may look at. Designs are pure functions of finished runs, so a killed study asks the same again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from scalespec.orchestrator.errors import InputError
from scalespec.trainables.spec import RunSpec


class DesignError(InputError):
    """A study that cannot go on: a reading that its tables do not give, or a stage that rests on a failed run."""


@dataclass(frozen=True)
class Ask:
    """The runs that a stage wants next; without points, why there are none."""

    points: tuple[RunSpec, ...] = ()
    done: bool = False
    """Nothing further will be asked, whatever comes."""
    why: str = ""
    stage: str = ""
    round: int = 0
    """Position among the asks of its stage."""
    role: str = "result"
    """result | probe: laws, frontier and choices read result rows only."""
    digest: str = ""
    """Of the stage's definition, of what it read and of the runs that follow: an ask with an equal digest stands."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key → value that was read from earlier stages."""
    seen: tuple[str, ...] = ()
    """Keys of the runs that it was decided from."""
    left: tuple[RunSpec, ...] = ()
    """Of an empty ask: runs without a result of the asks that hold. A driver that is gone may have asked for them."""


@dataclass(frozen=True)
class Decided(Ask):
    """An ask as it was committed."""

    number: int = 0
    supersedes: tuple[int, ...] = ()
    """Numbers of earlier asks that no longer hold."""


@dataclass(frozen=True)
class Seen:
    """What is known of a study: the asks in force, the results on disk, and the tables made of them."""

    decided: Sequence[Decided]
    """In force, by number."""
    results: Mapping[str, Mapping[str, Any]]
    """run_key → the committed result."""
    tables: Callable[[Sequence[RunSpec], Collection[str]], Mapping[str, pd.DataFrame] | None]
    """The named tables of these runs; None while one of them is still being computed, as spectra may be."""

    def of(self, stage: str) -> dict[int, Decided]:
        """The asks of a stage, by round."""
        return {ask.round: ask for ask in self.decided if ask.stage == stage}

    def unfinished(self, points: Sequence[RunSpec]) -> tuple[RunSpec, ...]:
        """Those without a result."""
        return tuple(spec for spec in points if spec.run_key not in self.results)

    def failed(self, points: Sequence[RunSpec]) -> list[str]:
        """Keys whose run failed. A diverged run is a result."""
        return [s.run_key for s in points if self.results.get(s.run_key, {}).get("status") == "failed"]


class Design(Protocol):
    """Which runs a study wants next."""

    def ask(self, seen: Seen, running: Collection[str] = (), budget: float | None = None) -> Ask:
        """The next ask; empty while it waits for runs (`why` says for which) and when it is `done`.

        `running`: keys being trained; `budget`: FLOP that may still be spent, None for no limit. Raises DesignError.
        """
        ...


def digest(*parts: Any) -> str:
    """sha256 of plain values, 16 digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(seen: Seen, points: Sequence[RunSpec]) -> str:
    """Of what the results say: losses and states, not times or hosts. It changes where a run was trained anew to other numbers."""
    facts = []
    for spec in points:
        result = seen.results.get(spec.run_key, {})
        facts.append([spec.run_key, *(result.get(name) for name in ("status", "steps", "val_loss", "val_loss_select"))])
    return digest(sorted(facts, key=lambda fact: str(fact[0])))
