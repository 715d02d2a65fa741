"""Small studies trained in this process, by the workers' own code and without Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from scalespec.orchestrator.engine import worker
from scalespec.orchestrator.run import all_jobs
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study.file import Study, to_yaml
from scalespec.orchestrator.study.grid import Grid, expand
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
    """The folder of a toy study before its first step."""
    study = toy(**changes)
    grid, store = expand(study), StudyStore(str(root))
    store.files.write("study.yaml", to_yaml(study).encode())
    for spec in grid.runs:
        store.write_spec(spec)
    return Trained(study, grid, store)


def pack(study: Trained, session: str = "session-1") -> dict[str, Any]:
    """What Ray Train hands to the workers of one pack that holds all runs."""
    jobs = [job.to_json() for job in all_jobs(study.grid, study.specs).values()]
    return {"root": study.store.root, "session": session, "threads": 1, "code_version": "test", "jobs": jobs}


def train(study: Trained, session: str = "session-1") -> Trained:
    """Runs the pack. The toy task plays its faults where it sees itself in a worker of Ray."""
    with mock.patch.dict(os.environ, RAY_RAYLET_PID="0"):
        worker.run_pack(pack(study, session))
    return study


def result_path(store: StudyStore, run_key: str) -> str:
    """Where the result that counts lies."""
    path = store.run(run_key).history().result_path
    assert path is not None
    return path


def trained(root: Path, **changes: Any) -> Trained:
    return train(prepared(root, **changes))
