"""How runs and studies came out: the marks of each state, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalespec.analysis.laws import Law
from scalespec.orchestrator.store.folder import StudyStore

MARKS = {"done": "✔", "running": "▶", "diverged": "↗", "failed": "✘", "missing": "·"}

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Outcome:
    """What a finished study says of itself."""

    store: StudyStore
    states: Mapping[str, str]
    laws: Sequence[Law]
    tracked: bool
    problems: Sequence[str]

    @property
    def exit_code(self) -> int:
        return FAILED if any(state in ("failed", "missing") for state in self.states.values()) else DONE
