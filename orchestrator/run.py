"""`scalespec run`: the driver's loop. A finished run may lead to an ask, an ask to units for the lanes, until nothing is wanted."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from scalespec.orchestrator import conclude
from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.ask import Ask, DesignError, Seen
from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.engine import cluster, jobs
from scalespec.orchestrator.engine.board import wanted
from scalespec.orchestrator.engine.lanes import Lanes, NoRoomError, Settings, check_room
from scalespec.orchestrator.engine.probe import Probe, with_room_for_spectra
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.spectra.follow import Follower
from scalespec.orchestrator.states import Outcome
from scalespec.orchestrator.store import run_tables
from scalespec.orchestrator.store.folder import StorageError, StudyStore, check_writable, read_text, study_root
from scalespec.orchestrator.store.lease import Lease, LeaseError, lease
from scalespec.orchestrator.store.watch import Watcher
from scalespec.orchestrator.study import plan
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.file import Study, load_study, parse_study, to_yaml
from scalespec.orchestrator.study.plan import Plan
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.terminal.progress import Progress, duration, say
from scalespec.orchestrator.tracking import recorder as tracking
from scalespec.orchestrator.version import code_version, fingerprint
from scalespec.trainables.spec import RunSpec

LOOK_S = 1.0
"""Seconds to wait for news of the lanes: the live view moves this often."""

SWEEP_S = 30.0
"""Seconds between two looks at every run in a lane, in case a word got lost."""


def run_study(
    path: str, *, storage: str | None = None, overrides: Sequence[str] = (), address: str | None = None
) -> Outcome:
    """The whole study. What is finished is not done again.

    Raises InputError before anything is written, for whatever the user can mend.
    """
    study = load_study(path, overrides)
    if storage is not None:
        study = study.model_copy(update={"storage": storage})
    try:
        store = StudyStore(study_root(study.storage, study.name))
        _refuse_other_study(store, study)
        with cluster.connected(address) as found:
            points = Expander(gpus=found.gpus > 0)
            certain, _ = Stages(study, points).known()
            for workers in {spec.train.workers for spec in certain}:
                check_room(workers, with_room_for_spectra(study, found))
            check_writable(store.root)
            with lease(store) as held:
                store.files.write("study.yaml", to_yaml(study).encode())
                driver = Driver(study, points, store, held, found)
                driver.train()
                return driver.conclude()
    except (StorageError, LeaseError, NoRoomError) as error:
        raise InputError(str(error)) from error


def _refuse_other_study(store: StudyStore, study: Study) -> None:
    written = read_text(store, "study.yaml")
    if written and parse_study(written, "study.yaml").task["name"] != study.task["name"]:
        raise InputError(f"{store.root} holds a study of another task; change `name` or choose another --storage")


class Driver:
    """One study, from what is on disk to its last result."""

    def __init__(self, study: Study, points: Expander, store: StudyStore, held: Lease, found: Machine) -> None:
        self.study, self.points, self.store, self.held, self.found = study, points, store, held, found
        self.machine = with_room_for_spectra(study, found)
        self.design = Stages(study, points)
        self.asks = log.retire(store, log.read(store), [stage.name for stage in study.stages])
        self.probe, self.planned = Probe(study, self.machine), None
        self.watcher, self.progress = Watcher(store), Progress()
        self.results: dict[str, Mapping[str, Any]] = {}
        self.problems: list[str] = []
        self.lanes: Lanes | None = None
        self.queued: set[str] = set()
        target = tracking.target_of(store, study.tracking.uri)
        if target is None:
            say(
                "tracking: the study folder is on no local disk, so MLflow is not written live; `scalespec sync` does it later"
            )
        self.recorder = tracking.Recorder(None if target is None else tracking.Tracker(store, target, study.name))
        self.spectra = Follower(store, study.spectra)

    def train(self) -> None:
        """Asks, trains and looks until the design wants nothing more, or nothing more can come."""
        try:
            with self.progress:
                while self._ask():
                    self._look()
        finally:
            if self.lanes is not None:
                self.lanes.finish()
                self.problems += self.lanes.problems
        self.store.files.delete(".ray")
        if not self.queued:
            say(f"all {len(self.results)} runs are finished; nothing to train")

    def conclude(self) -> Outcome:
        """The spectra that are left, then tables, laws, report and MLflow."""
        self.spectra.rest(self.found.cpus)
        self.recorder.stop()
        self.problems += self.spectra.problems
        return conclude.conclude(self.study, self.asks, self.store, self.recorder, self.problems)

    # -- asking -------------------------------------------------------------------------------------------------------

    def _ask(self) -> bool:
        """Commits and queues what the design wants now. False when the study is over, one way or another."""
        try:
            while (ask := self.design.ask(self._seen(), running=self.queued - set(self.results))).points:
                self._commit(ask)
        except DesignError as error:
            self.problems.append(str(error))
            return bool(self.queued - set(self.results))
        if ask.done:
            return False
        news = self.lanes.last if self.lanes is not None else None
        if (news is None or not news.work) and not self.spectra.busy:
            self.problems.append(ask.why)  # what it waits for was given up, or failed
            return False
        return True

    def _seen(self) -> Seen:
        return Seen(log.in_force(self.asks), self.results, self._tables)

    def _commit(self, ask: Ask) -> None:
        self.asks.append(log.commit(self.store, ask, self.asks, self.design.dependents(ask.stage)))
        self.recorder.expect(ask.points)
        self.spectra.expect(ask.points)
        new = [spec.run_key for spec in ask.points if spec.run_key not in self.results]
        self._take(self.watcher.begin(new), new)
        todo = [spec for spec in ask.points if spec.run_key not in self.results and spec.run_key not in self.queued]
        if todo:
            self._queue(ask, todo)

    def _queue(self, ask: Ask, todo: Sequence[RunSpec]) -> None:
        """Plans these runs and hands them to the lanes."""
        grid = self.points.grid(ask.points)
        speeds = self.probe.speeds(grid, ask.points)
        grid = plan.with_workers(self.study, grid, speeds, self.machine)
        keys = {spec.run_key for spec in todo}
        planned = plan.make_plan(
            self.study, grid, [spec for spec in grid.runs if spec.run_key in keys], speeds, self.machine,
            first=len(self.planned.units) if self.planned else 0,
        )  # fmt: skip
        self._announce(ask, planned, len(ask.points) - len(todo))
        self.planned = planned if self.planned is None else self.planned.followed_by(planned)
        self.store.write_json("plan.json", self.planned.to_json())
        if self.lanes is None:
            settings = Settings(
                self.store.root, self.held.session, self.machine.cpus_per_worker, self.found.gpus > 0, code_version(), fingerprint()
            )  # fmt: skip
            self.lanes = Lanes(settings, self.machine)
        self.lanes.add(jobs.with_jobs(planned.units, grid, log.specs(self.asks)))
        self.queued |= keys

    def _announce(self, ask: Ask, planned: Plan, before: int) -> None:
        again = f", {before} finished before" if before else ""
        stage = f"{planned.study}" if len(self.study.stages) == 1 and ask.round == 0 else f"{planned.study}, {ask.why}"
        say(f"{stage}: {len(planned.runs)} runs{again}, on {planned.lanes} lanes, about {duration(planned.seconds)}")
        self.progress.expect({run.run_key: run.seconds for run in planned.runs}, planned.lanes)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Waits for news of the lanes and takes in what is on disk."""
        if self.lanes is None:  # nothing to train, but spectra that a stage waits for
            self.spectra.lend(self.found.cpus)
            time.sleep(LOOK_S)
            return
        if self.held.lost.is_set():
            raise LeaseError("another driver has taken over this study; this one stops")
        news = self.lanes.news(LOOK_S)
        self._take(self.watcher.look(_runs(news, self.watcher.sweep(SWEEP_S))), news.running)
        room = {size: self.machine.lanes(size) for size in {*news.work, *self.lanes.alive()}}
        self.lanes.adjust(wanted(news.work, self.lanes.alive(), room), news.waiting)
        self.spectra.lend(self._free_cpus(news))
        self.progress.show()

    def _take(self, events: Iterable[Any], keys: Collection[str]) -> None:
        """Events to everyone who listens."""
        touched = {event.run_key for event in events}
        for key in touched & set(keys) | touched:
            result = self.watcher.results.get(key)
            stands = result is not None and (
                result.get("status") != "failed" or result.get("session") == self.held.session
            )
            if result is not None and stands and key not in self.results:
                self.results[key] = result
                self.progress.finished(key, result["status"] + (f" ({result['error']})" if result.get("error") else ""))
        self.recorder.take(touched)
        self.spectra.take(events)

    def _free_cpus(self, news: News) -> int:
        """CPUs that the spectral stage may take while training goes on: one of four or more, else those of lanes that wait."""
        if self.found.cpus >= 4 or self.lanes is None:
            return 1
        held = sum(size * count for size, count in self.lanes.alive().items()) - sum(news.waiting.values())
        return max(0, self.found.cpus - held * self.machine.cpus_per_worker)

    def _tables(self, points: Sequence[RunSpec], needs: Collection[str]) -> Mapping[str, pd.DataFrame] | None:
        """The named tables of these runs; None while their spectra are being computed."""
        if "spectra_summary" in needs and self.spectra.missing(points):
            return None
        return run_tables.frames(self.store, points, needs)


def _runs(news: News, sweep: bool) -> list[str]:
    """The runs to look at: those of which something was told, now and then all that are in a lane."""
    told = {folder.removeprefix("runs/") for _, folder, _ in news.hints if folder.startswith("runs/")}
    return sorted(told | set(news.running) if sweep else told)
