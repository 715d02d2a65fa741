"""`scalespec run`: the driver's loop. A finished run may lead to an ask, an ask to units for the lanes, until nothing is wanted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from scalespec.orchestrator import conclude
from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.ask import Ask, DesignError, Seen
from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.engine import cluster
from scalespec.orchestrator.engine.lanes import CodeDiffersError, NoRoomError, check_room
from scalespec.orchestrator.engine.looks import LOOK_S, Looks
from scalespec.orchestrator.engine.probe import with_room_for_spectra
from scalespec.orchestrator.engine.work import Work
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.spectra.follow import Follower
from scalespec.orchestrator.states import Outcome
from scalespec.orchestrator.store import run_tables
from scalespec.orchestrator.store.files import StorageError, check_writable, study_root
from scalespec.orchestrator.store.folder import StudyStore, read_text
from scalespec.orchestrator.store.lease import Lease, LeaseError, lease
from scalespec.orchestrator.store.watch import Event, Watcher
from scalespec.orchestrator.study import own_task
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.file import load_study, parse_study, to_yaml
from scalespec.orchestrator.study.plan import Plan
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.study import Study
from scalespec.orchestrator.terminal.progress import Progress, duration, say
from scalespec.orchestrator.tracking.mlflow import Tracker, target_of
from scalespec.orchestrator.tracking.recorder import Recorder
from scalespec.trainables.spec import RunSpec


def run_study(
    path: str, *, storage: str | None = None, overrides: Sequence[str] = (), address: str | None = None
) -> Outcome:
    """The whole study. What is finished is not done again.

    Raises InputError before anything is written, for whatever the user can mend.
    """
    study = load_study(path, overrides)
    if storage is not None:
        study = dataclasses.replace(study, storage=storage)
    try:
        store = StudyStore(study_root(study.storage, study.name))
        _refuse_other_study(store, study)
        paths, _ = own_task.admit(path, study.task["name"])
        with cluster.connected(address, paths) as found:
            points = Expander(gpus=found.gpus > 0)
            certain, _ = Stages(study, points).known()
            for workers in {spec.train.workers for spec in certain}:
                check_room(workers, with_room_for_spectra(study, found))
            check_writable(store.root)
            with lease(store, say) as held:
                store.files.write("study.yaml", to_yaml(study).encode())
                driver = Driver(study, points, store, held, found)
                driver.train()
                return driver.conclude()
    except (StorageError, LeaseError, NoRoomError, CodeDiffersError) as error:
        raise InputError(str(error)) from error


def _refuse_other_study(store: StudyStore, study: Study) -> None:
    written = read_text(store, "study.yaml")
    if written and parse_study(written, "study.yaml").task["name"] != study.task["name"]:
        raise InputError(f"{store.root} holds a study of another task; change `name` or choose another --storage")


class Driver:
    """One study, from what is on disk to its last result. Recorder, spectra, progress and design follow one watcher."""

    def __init__(self, study: Study, points: Expander, store: StudyStore, held: Lease, found: Machine) -> None:
        self.study, self.store, self.held, self.found = study, store, held, found
        self.design = Stages(study, points)
        self.asks = log.retire(store, log.read(store), [stage.name for stage in study.stages])
        self.work = Work(study, points, store.root, held.session, found)
        self.watcher, self.looks, self.progress = Watcher(store), Looks(), Progress()
        self.results: dict[str, Mapping[str, Any]] = {}
        """Of the runs asked for: results that stand."""
        self.problems: list[str] = []
        self._news = True
        """Whether something has come that the design has not seen."""
        target = target_of(store, study.tracking.uri)
        if target is None:
            say("tracking: the study folder is on no local disk, so MLflow is not written live; `scalespec sync` does it later")  # fmt: skip
        self.recorder = Recorder(None if target is None else Tracker(store, target, study.name))
        self.spectra = Follower(store, study.spectra.every, study.spectra.profile, study.spectra.vectors)

    def train(self) -> None:
        """Asks, trains and looks until the design wants nothing more, or nothing more can come."""
        over = False
        try:
            with self.progress:
                self._expect(log.specs(self.asks))  # with what earlier drivers have left
                while self._ask():
                    self._look()
            over = True
        finally:
            # who interrupts a study does not wait for what its lanes are at
            self.problems += self.work.finish(wait=over)
        self.store.files.delete(".ray")
        if not self.work.begun:
            say(f"all {len(self.results)} runs are finished; nothing to train")

    def conclude(self) -> Outcome:
        """The spectra that are left, then tables, laws, report and MLflow."""
        self.spectra.rest(self.found.cpus)
        self.recorder.stop()
        return conclude.conclude(self.study, self.asks, self.store, self.recorder, self.problems)

    def _ask(self) -> bool:
        """Commits and queues what the design wants now. False when the study is over, one way or another."""
        spectra = self.spectra.busy
        idle = not self.work.last.work and not spectra
        if not (self._news or idle):
            return True
        if idle:  # in case a word got lost: what has no result now will not get one
            self._take(self.watcher.look(sorted(self.work.queued - set(self.results))))
        self._news, handed, done = False, len(self.work.queued), False
        try:
            while (ask := self.design.ask(self._seen(), running=self.work.queued - set(self.results))).points:
                self.asks.append(log.commit(self.store, ask, self.asks, self.design.dependents(ask.stage)))
                self._expect(ask.points)
                self._queue(ask, ask.points)
            self._queue(ask, ask.left)  # asked for by a driver that is gone
            done, why = ask.done, ask.why
        except DesignError as error:
            why = str(error)
        idle = idle and len(self.work.queued) == handed
        if idle and not done:
            self.problems.append(why)  # what it waits for was given up, or failed
        return not (done or idle)

    def _seen(self) -> Seen:
        return Seen(log.in_force(self.asks), self.results, self._tables)

    def _expect(self, points: Sequence[RunSpec]) -> None:
        """Runs that were asked for: those that are finished are results at once."""
        self.recorder.expect(points)
        self.spectra.expect(points)
        self._take(self.watcher.begin(spec.run_key for spec in points if spec.run_key not in self.results))

    def _queue(self, ask: Ask, points: Sequence[RunSpec]) -> None:
        """Hands the lanes those of the points that have no result and were not handed out."""
        known = {*self.results, *self.work.queued}
        if todo := [spec for spec in points if spec.run_key not in known]:
            planned = self.work.queue(points, todo, log.specs(self.asks))
            self.recorder.begin()
            assert self.work.planned is not None
            self.store.write_json("plan.json", self.work.planned.to_json())
            self._announce(ask, planned, len(points) - len(todo) if points is ask.points else len(self.results))

    def _announce(self, ask: Ask, planned: Plan, before: int) -> None:
        again = f", {before} finished before" if before else ""
        stage = f" ({ask.why})" if self.study.design else ""
        took = planned.seconds if self.work.planned is planned else planned.training_seconds
        say(f"{planned.study}{stage}: {len(planned.runs)} runs{again}, {len(planned.units)} units on {planned.lanes} lanes, about {duration(took)}")  # fmt: skip
        self.progress.expect({run.run_key: run.seconds for run in planned.runs}, planned.lanes)

    def _look(self) -> None:
        """Waits for news of the lanes and takes in what is on disk."""
        if self.held.lost.is_set():
            raise LeaseError("another driver has taken over this study; this one stops")
        waiting = self.spectra.busy
        news = self.work.news(LOOK_S)
        if not self.work.begun:
            time.sleep(LOOK_S)
        self._take(self.watcher.look(self.looks.due(news, self.work.queued, self.results)))
        self.spectra.lend(self.work.free_cpus())
        self._news = self._news or (waiting and not self.spectra.busy)
        self.progress.show()

    def _take(self, events: Sequence[Event]) -> None:
        """Events to everyone who follows."""
        steps: dict[str, int] = {}
        for key in (event.run_key for event in events if event.what == "result"):
            result = self.watcher.results[key]
            if result.get("status") != "failed" or result.get("session") == self.held.session:
                self.results[key], steps[key], self._news = result, int(result.get("steps") or 0), True
                said = f" ({result['error']})" if result.get("error") else ""
                self.progress.finished(key, f"{result['status']}{said}")
        self.recorder.take(events, self.watcher.results)
        self.spectra.take(events, steps)

    def _tables(self, points: Sequence[RunSpec], needs: Collection[str]) -> Mapping[str, pd.DataFrame] | None:
        """The named tables of these runs; None while their spectra are being computed."""
        if "spectra_summary" in needs and self.spectra.missing(points):
            return None
        made: dict[str, pd.DataFrame] = run_tables.frames(self.store, points, needs)
        if "spectra_summary" in needs:
            made["spectra_summary"] = stage.summary_of(self.store, [spec.run_key for spec in points])
        return made
