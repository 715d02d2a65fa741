"""The spectral stage beside training: checkpoints as they are committed, on CPUs that are free; the rest when training is over."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence, Set
from typing import Any

from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.store import run_tables
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.watch import Event
from scalespec.orchestrator.terminal.progress import say
from scalespec.trainables.family import checkpoint_steps
from scalespec.trainables.spec import RunSpec

log = logging.getLogger("scalespec.spectra")

TRIES, RETRY_S = 3, 5.0
"""A pass that fails is repeated after a pause; what has failed so often in a row waits for the pass after training."""

Row = dict[str, Any]
"""A row of the checkpoints table."""


class Follower:
    """Knows which checkpoints have no spectra yet, and computes them in a thread while the driver lends it CPUs."""

    def __init__(self, store: StudyStore, every: str, profile: str, vectors: bool) -> None:
        """`every`: checkpoint | last | never."""
        self.store, self.every = store, every
        self.request = stage.Request(store.root, profile, vectors)
        self._specs: dict[str, RunSpec] = {}
        self._steps: dict[str, int] = {}
        """run_key → steps of a finished run."""
        self._rows: dict[str, dict[int, Row]] = {}
        """run_key → step → checkpoint."""
        self._dirty: set[str] = set()
        self._complete: set[str] = set()
        """Finished runs whose every checkpoint has been looked at."""
        self._done: set[stage.Key] | None = None
        self._layers: dict[tuple[Any, ...], set[str]] = {}
        """Model → its layers; they are the same in all its runs."""
        self._lent, self._computing, self._stop = 0, False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="spectra", daemon=True)

    def expect(self, specs: Iterable[RunSpec]) -> None:
        """Runs that the study has asked for."""
        self._specs |= {spec.run_key: spec for spec in specs}

    def take(self, events: Iterable[Event], steps: dict[str, int]) -> None:
        """What was committed; `steps`: of the runs among them that have finished."""
        if self.every == "never":
            return
        with self._changed:
            for event in events:
                if event.what == "checkpoint":
                    row = run_tables.checkpoint_row(self.store.files, event.run_key, event.step, event.path)
                    if row is not None:
                        self._rows.setdefault(event.run_key, {})[event.step] = row
                        self._dirty.add(event.run_key)
            self._steps |= steps
            self._dirty |= set(steps)
            self._changed.notify_all()

    def lend(self, cpus: int) -> None:
        """CPUs that nobody else needs for now."""
        with self._changed:
            self._lent = cpus
            if cpus and self._dirty and not self._thread.ident:
                self._thread.start()
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        """Whether spectra are being computed, or would be if a CPU were lent."""
        with self._changed:
            return self._computing or bool(self._dirty)

    def missing(self, points: Sequence[RunSpec]) -> bool:
        """Whether spectra of these finished runs are still to come."""
        with self._changed:
            return self.every != "never" and any(spec.run_key not in self._complete for spec in points)

    def rest(self, cpus: int) -> None:
        """Computes whatever is left, on all CPUs."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join()
        if self.every != "never":
            self._compute({*self._rows, *self._steps} - self._complete, cpus, lent=False)

    def _follow(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stop or (self._lent and self._dirty))
                if self._stop:
                    return
                cpus, self._computing = self._lent, True
                keys, self._dirty = self._dirty, set()
            try:
                self._compute(keys, cpus, lent=True)
                failures = 0
            except Exception:  # nothing is lost: the pass after training finds what this one left
                log.exception("spectra while training")
                failures += 1
                with self._changed:
                    self._changed.wait_for(lambda: self._stop, RETRY_S)
                    self._dirty |= keys if failures < TRIES else set()
            finally:
                with self._changed:
                    self._computing = False

    def _compute(self, keys: Set[str], cpus: int, *, lent: bool) -> None:
        """Computes what these runs have that is not computed yet."""
        if self._done is None:
            self._done = stage.done_keys(self.store, self.request.profile)
        with self._changed:
            finished = {key for key in keys if key in self._steps}
            rows = {key: dict(self._rows.get(key, {})) for key in keys}
        for key in finished:
            # finished before this driver began, or told of while the storage was away: looked at only where something is missing
            if not self._expected(key) <= rows[key].keys() and not self._has_all(key):
                rows[key] = {row["step"]: row for row in run_tables.checkpoint_rows(self.store, key)}
                names = {name for name, _, _ in stage.layers_of(self.store, list(rows[key].values()))}
                self._layers[_model(self._specs[key])] = names
        wanted = finished if self.every == "last" else keys
        refs = stage.references(
            self.store, (row for key in wanted for row in rows[key].values()), self.every, self._done
        )
        if refs:
            if not lent:
                say(f"spectra: {len(refs)} matrices")
            stage.run_stage(self.store, refs, self.request, cpus, lent=lent)
            # what could not be read is not tried again before the study is run again
            self._done.update(key for ref in refs for key in ref.keys)
        with self._changed:
            self._complete |= finished
            for key in finished:
                self._rows.pop(key, None)

    def _has_all(self, key: str) -> bool:
        """Whether a finished run has all its rows, as far as can be told without looking into its folder."""
        layers = self._layers.get(_model(self._specs[key]))
        if not layers or self._done is None:
            return False
        return {(key, step, layer) for step in self._expected(key) for layer in layers} <= self._done

    def _expected(self, key: str) -> set[int]:
        steps = checkpoint_steps(self._steps[key], self._specs[key].train.checkpoints)
        return set(steps if self.every == "checkpoint" else steps[-1:])


def _model(spec: RunSpec) -> tuple[Any, ...]:
    return spec.task, spec.task_version, spec.width, json.dumps(dict(spec.options), sort_keys=True)
