"""What follows a running study for MLflow: a thread in the driver that is told what was committed and asks the disk for nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scalespec.orchestrator.store.watch import Event
from scalespec.orchestrator.tracking.mlflow import Told, Tracker
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.tracking")

PAUSE_S, RETRY_S = 5.0, 20.0
"""Seconds between two times that something is sent, and until the next try where that failed."""


class Recorder:
    """Sends what a running study commits, in a thread. Nothing that goes wrong here reaches training; `problem` says what did.

    A run that was finished before anybody looked is told by its result alone: only of such a run the disk is asked for more.
    """

    def __init__(self, tracker: Tracker | None, specs: Iterable[RunSpec] = ()) -> None:
        self.tracker, self.problem = tracker, ""
        self.specs = {spec.run_key: spec for spec in specs}
        self._news: dict[str, Told] = {}
        self._followed: set[str] = set()
        """Runs of which everything was told, their first claim among it."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="recorder", daemon=True)

    def expect(self, specs: Iterable[RunSpec]) -> None:
        """Runs that the study has asked for."""
        with self._lock:
            self.specs |= {spec.run_key: spec for spec in specs}

    def take(self, events: Iterable[Event], results: Mapping[str, Mapping[str, Any]]) -> None:
        """What was committed, and the results that are known."""
        with self._lock:
            for event in events:
                told = self._news.get(event.run_key, Told())
                if event.what == "claim":
                    told = told._replace(claim=told.claim or event.path)
                    self._followed.add(event.run_key)
                elif event.what == "part":
                    told = told._replace(parts=(*told.parts, event.path))
                elif event.what == "result":
                    told = told._replace(result=results[event.run_key])
                self._news[event.run_key] = told
        if self._news:
            self.begin()

    def begin(self) -> None:
        """Starts the thread: MLflow is imported and its store made, which takes seconds of a CPU. The time for it is while lanes
        start: before, the driver measures how fast the machine is, and afterwards every CPU trains."""
        if self.tracker is not None and not self._thread.ident:
            self._thread.start()

    def _follow(self) -> None:
        self._try(lambda tracker: tracker.open())
        while True:
            with self._lock:
                news, self._news = self._news, {}
                specs = [self.specs[key] for key in sorted(news) if key in self.specs]
                whole = {key: told for key, told in news.items() if key in self._followed}
            sent = self._try(lambda tracker: tracker.record(specs, whole)) if specs else True  # noqa: B023
            if not sent:
                with self._lock:
                    self._news = {key: _joined(news.get(key), self._news.get(key)) for key in {**news, **self._news}}
            if self._stop.wait(PAUSE_S if sent else RETRY_S):
                return

    def _try(self, action: Any) -> bool:
        assert self.tracker is not None
        try:
            action(self.tracker)
        except Exception as error:  # any fault of a server, a disk or a driver: training must not know
            self.problem = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
            )
            log.debug("tracking: %s", self.problem)
            return False
        self.problem = ""
        return True

    def stop(self) -> None:
        """Ends following; what is not sent yet is sent by `complete`."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def complete(self, summary: Sequence[Mapping[str, Any]], laws: Sequence[Mapping[str, Any]], *, status: str) -> bool:
        """Sends everything that is left. False where MLflow could not be reached; `sync` repairs that later."""
        if self.tracker is None:
            return False

        def everything(tracker: Tracker) -> None:
            tracker.record(list(self.specs.values()))
            tracker.record_spectra(summary)
            tracker.record_study(laws, status=status)

        return self._try(everything)

    @property
    def run_ids(self) -> dict[str, str]:
        return {} if self.tracker is None else dict(self.tracker.run_ids)


def _joined(before: Told | None, after: Told | None) -> Told:
    """What was told in two parts."""
    if before is None or after is None:
        return before or after or Told()
    return Told(before.claim or after.claim, before.parts + after.parts, after.result or before.result)
