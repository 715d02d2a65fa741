"""The watcher: what was committed since the last look, for everyone who follows a study.

It remembers what it has seen, looks only at runs of which something was told or that are being trained, and at a finished run
never again: its cost grows with new commits, not with what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scalespec.orchestrator.store.folder import StudyStore
from scalespec.trainables.commits import read_json
from scalespec.trainables.files import Files
from scalespec.trainables.history import CLAIM, RESULT, History, attempt_folder, attempt_of, history, is_claim

log = logging.getLogger("scalespec.watch")


class Event(NamedTuple):
    """One commit of a run."""

    run_key: str
    what: str
    """claim | part | checkpoint | media | result."""
    step: int
    """0 for claims and results; of a part not given (0)."""
    path: str
    """Of the file (claim, part, result) or of the folder (checkpoint, media), inside the study."""


@dataclass
class Watcher:
    """Looks at run folders and tells what is new in them."""

    store: StudyStore
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """run_key → its committed result, of the runs looked at."""
    _files: Files = field(init=False)
    _told: dict[str, set[Event]] = field(default_factory=dict)
    _claims: dict[str, dict[int, Any]] = field(default_factory=dict)
    _missed: set[str] = field(default_factory=set)
    """Runs that the storage gave no answer about: the next look is at them too."""

    def __post_init__(self) -> None:
        self._files = self.store.files

    def begin(self, keys: Iterable[str]) -> list[Event]:
        """The first look at these runs. A finished one is told by its result alone."""
        there = set(self._files.names("runs"))
        out: list[Event] = []
        for key in keys:
            if key in there:
                result = finished(self._files, key)
                out += [self._finish(key, *result)] if result else self.look([key])
        return out

    def look(self, keys: Iterable[str]) -> list[Event]:
        """What is new in these runs since the last look at them. Storage that does not answer is asked again at the next one."""
        out: list[Event] = []
        keys, self._missed = dict.fromkeys([*sorted(self._missed), *keys]), set()
        for key in keys:
            if key in self.results and self.results[key]["status"] != "failed":
                continue
            try:
                out += self._look(key)
            except OSError as error:
                log.warning("run %s: %s", key, error)
                self._missed.add(key)
        return out

    def _look(self, key: str) -> list[Event]:
        found = self.history(key)
        result = None if found.result_path is None else _result(self._files, found.result_path)
        events = {Event(key, "claim", 0, f"runs/{key}/{attempt_folder(a)}/{CLAIM}") for a in found.attempts}
        events |= {Event(key, "part", 0, path) for path in found.settled_parts}
        events |= {Event(key, "checkpoint", step, path) for step, path in found.checkpoints.items()}
        events |= {Event(key, "media", step, path) for step, path in found.media.items()}
        out = sorted(events - self._told.setdefault(key, set()), key=lambda event: (event.step, event.path))
        self._told[key] |= events
        if found.result_path is not None and result is not None and self.results.get(key) != result:
            out.append(self._finish(key, found.result_path, result))
        return out

    def history(self, key: str) -> History:
        """What counts of a run. A claim never changes, so each is read once."""
        paths = self._files.walk(f"runs/{key}")
        claims = self._claims.setdefault(key, {})
        for path in paths:
            folder, _, name = path.partition("/")
            attempt = attempt_of(folder)
            if name == CLAIM and attempt is not None and attempt not in claims:
                claims[attempt] = read_json(self._files, f"runs/{key}/{path}")
        return history(paths, claims, f"runs/{key}/")

    def _finish(self, key: str, path: str, result: Mapping[str, Any]) -> Event:
        self.results[key] = result
        if result["status"] != "failed":  # a failed run may be tried again
            self._told.pop(key, None)
            self._claims.pop(key, None)
        return Event(key, "result", 0, path)


def finished(files: Files, key: str) -> tuple[str, Mapping[str, Any]] | None:
    """Path and content of a run's result, by one listing and one read; None where its newest attempt has none."""
    attempts = (number for name in files.names(f"runs/{key}") if (number := attempt_of(name)) is not None)
    for number in sorted(attempts, reverse=True):
        folder = f"runs/{key}/{attempt_folder(number)}"
        if (result := _result(files, f"{folder}/{RESULT}")) is not None:
            return f"{folder}/{RESULT}", result
        if is_claim(read_json(files, f"{folder}/{CLAIM}")):
            return None  # an attempt that ended before its claim is none
    return None


def results(store: StudyStore, keys: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The committed results among `keys`."""
    files = store.files
    there = set(files.names("runs"))
    found = ((key, finished(files, key)) for key in keys if key in there)
    return {key: result[1] for key, result in found if result is not None}


def _result(files: Files, path: str) -> Mapping[str, Any] | None:
    """A run's result; None where it is absent or damaged."""
    found = read_json(files, path)
    return found if isinstance(found, dict) and isinstance(found.get("status"), str) else None
