"""Small studies trained in this process, by the workers' own code and without Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.ask import Seen
from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.engine.jobs import with_jobs
from scalespec.orchestrator.engine.worker import Job, Worker
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study import plan
from scalespec.orchestrator.study.file import to_yaml
from scalespec.orchestrator.study.grid import Grid, expand
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.spec import RunSpec
from studies import toy


@dataclass(frozen=True)
class Trained:
    """A study folder whose runs are finished; spectra, tables and MLflow are not there yet."""

    study: Study
    grid: Grid
    store: StudyStore

    @property
    def specs(self) -> tuple[RunSpec, ...]:
        return self.grid.runs


def prepared(root: Path, **changes: Any) -> Trained:
    """The folder of a toy study before its first step: the study, and what it has asked for."""
    study = toy(**changes)
    grid, store = expand(study), StudyStore(str(root))
    store.files.write("study.yaml", to_yaml(study).encode())
    asked = Stages(study, lambda _: grid.runs).ask(Seen([], {}, lambda points, needs: None))
    log.commit(store, asked, log.read(store))
    return Trained(study, grid, store)


def jobs(study: Trained) -> list[Job]:
    """What a lane is handed for all runs of the study."""
    schedules = plan.schedules(study.grid)
    units = plan.units_of(study.grid, schedules, study.specs, dict.fromkeys((s.run_key for s in study.specs), 1.0))
    return [Job.from_json(job) for unit in with_jobs(units, study.grid, study.specs) for job in unit.jobs]


def train(study: Trained, session: str = "session-1") -> Trained:
    """Trains every run as a lane does. The toy task plays its faults where it sees itself in a worker of Ray."""
    with mock.patch.dict(os.environ, RAY_RAYLET_PID="0"):
        Worker(study.store, session, "test").run(jobs(study))
    return study


def result_path(store: StudyStore, run_key: str) -> str:
    """Where the result that counts lies."""
    path = store.run(run_key).history().result_path
    assert path is not None
    return path


def trained(root: Path, **changes: Any) -> Trained:
    return train(prepared(root, **changes))
