"""The work in hand: what was asked for, as units in lanes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from scalespec.orchestrator.engine import jobs
from scalespec.orchestrator.engine.board import wanted
from scalespec.orchestrator.engine.lanes import ANSWER_S, Lanes, Settings
from scalespec.orchestrator.engine.probe import Probe, with_room_for_spectra
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.study import plan
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.plan import Plan
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.study import Study
from scalespec.orchestrator.version import code_version, fingerprint
from scalespec.trainables.spec import RunSpec

NOTHING = News((), 0, {}, {}, (), {})


class Work:
    """Plans runs, hands them to lanes, and keeps as many lanes as there is work for."""

    def __init__(self, study: Study, points: Expander, root: str, session: str, found: Machine) -> None:
        self.study, self.points, self.root, self.session, self.found = study, points, root, session, found
        self.machine = with_room_for_spectra(study, found)
        self.queued: set[str] = set()
        """Keys of the runs that lanes were given, finished or not."""
        self.planned: Plan | None = None
        """Of everything queued so far."""
        self.last = NOTHING
        self._probe = Probe(study, self.machine)
        self._lanes: Lanes | None = None

    def queue(self, points: Sequence[RunSpec], todo: Sequence[RunSpec], asked: Sequence[RunSpec]) -> Plan:
        """Plans the runs `todo` among the points of an ask and hands them to the lanes. `asked`: all runs of the study so far.

        Raises NoRoomError for a worker group that can never be placed.
        """
        grid = self.points.grid(points)
        speeds = self._probe.speeds(grid, todo)
        grid = plan.with_workers(self.study, grid, speeds, self.machine)
        keys = {spec.run_key for spec in todo}
        first = len(self.planned.units) if self.planned else 0
        runs = [spec for spec in grid.runs if spec.run_key in keys]
        planned = plan.make_plan(self.study, grid, runs, speeds, self.machine, first=first)
        self.planned = planned if self.planned is None else self.planned.followed_by(planned)
        if self._lanes is None:
            use = (self.machine.cpus_per_worker, self.found.gpus > 0)
            self._lanes = Lanes(
                Settings(self.root, self.session, *use, code_version(), fingerprint(), os.getcwd()), self.machine
            )
        self._lanes.add(jobs.with_jobs(planned.units, grid, asked))
        self.queued |= keys
        return planned

    @property
    def begun(self) -> bool:
        """Whether anything was handed to lanes."""
        return self._lanes is not None

    def news(self, timeout_s: float) -> News:
        """What the lanes have told since the last call; starts and closes lanes as the work asks."""
        if self._lanes is None:
            return NOTHING
        self.last = news = self._lanes.news(timeout_s)
        alive = self._lanes.alive()
        room = {size: self.machine.lanes(size) for size in {*news.work, *alive}}
        self._lanes.adjust(wanted(news.work, alive, room), news.waiting)
        return news

    def free_cpus(self) -> int:
        """CPUs that the spectral stage may take while training goes on: one of four or more, else those of lanes that wait."""
        if self.found.cpus >= 4 or self._lanes is None:
            return 1 if self._lanes else self.found.cpus
        held = sum(size * count for size, count in self._lanes.alive().items()) - sum(self.last.waiting.values())
        return max(0, self.found.cpus - held * self.machine.cpus_per_worker)

    def finish(self, *, wait: bool = True) -> list[str]:
        """Closes the lanes, at once or when they have finished what they are at. Returns what went wrong with one."""
        if self._lanes is None:
            return []
        self._lanes.finish(ANSWER_S if wait else 0.0)
        lost = [f"{key}: {why}" for key, why in self.last.given_up.items()]
        return [*self._lanes.problems, *lost]
