"""The recorder: sends what a running study commits, beside training, which neither waits for MLflow nor dies of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scalespec.orchestrator.tracking.mlflow import Tracker
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.tracking")

PAUSE_S, RETRY_S = 2.0, 20.0
"""Between two sendings: what comes in between goes together. After a failure it waits longer."""


class Recorder:
    """Sends, in a thread, what it is told has news, and looks at nothing else. What goes wrong reaches nobody; `problem` says it."""

    def __init__(self, tracker: Tracker | None, specs: Iterable[RunSpec] = ()) -> None:
        self.tracker, self.problem = tracker, ""
        self.specs = {spec.run_key: spec for spec in specs}
        self._news: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="recorder", daemon=True)

    def expect(self, specs: Iterable[RunSpec]) -> None:
        """Runs that the study has asked for."""
        with self._lock:
            self.specs |= {spec.run_key: spec for spec in specs}

    def take(self, run_keys: Iterable[str]) -> None:
        """These runs have committed something. The first such word starts the thread."""
        # importing MLflow and making its store takes seconds of a CPU that the first workers need to start
        with self._lock:
            self._news |= set(run_keys)
            start = bool(self._news) and self.tracker is not None and not self._thread.ident
        if start:
            self._thread.start()

    def _follow(self) -> None:
        while True:
            with self._lock:
                keys, self._news = self._news, set()
                specs = [self.specs[key] for key in sorted(keys) if key in self.specs]
            sent = self._try(lambda tracker: tracker.record(specs)) if specs else True  # noqa: B023
            if not sent:
                with self._lock:
                    self._news |= keys
            if self._stop.wait(PAUSE_S if sent else RETRY_S):
                return

    def _try(self, action: Callable[[Tracker], Any]) -> bool:
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
