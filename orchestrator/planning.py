"""`scalespec plan`: what a study would do now, and a bound of what may follow. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.engine import cluster
from scalespec.orchestrator.engine.probe import Probe, with_room_for_spectra
from scalespec.orchestrator.store.files import study_root
from scalespec.orchestrator.store.folder import StudyStore, free_bytes
from scalespec.orchestrator.store.watch import results
from scalespec.orchestrator.study import plan
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.plan import Plan
from scalespec.orchestrator.study.study import Study


@dataclass(frozen=True)
class Outlook:
    """A plan with what is there already."""

    plan: Plan
    finished: tuple[str, ...]
    """Keys that have a result that stands."""
    free_bytes: int | None
    """Of the disk where the study lies; None behind a URI."""


def plan_study(study: Study, storage: str | None = None) -> Outlook:
    """The runs that are certain to be asked for, those left of them timed by a short probe on this machine.

    A stage that reads results is not known yet: `Plan.further_runs` bounds what it may ask. Raises InputError.
    """
    machine = with_room_for_spectra(study, cluster.this_machine())
    points = Expander(gpus=machine.gpus > 0)
    certain, further = Stages(study, points).known()
    store = StudyStore(study_root(storage or study.storage, study.name))
    there = results(store, [spec.run_key for spec in certain])
    finished = {key for key, result in there.items() if result.get("status") != "failed"}
    grid = points.grid(certain)
    speeds = Probe(study, machine).speeds(grid, [spec for spec in certain if spec.run_key not in finished])
    grid = plan.with_workers(study, grid, speeds, machine)
    todo = [spec for spec in grid.runs if spec.run_key not in finished]
    made = plan.make_plan(study, grid, todo, speeds, machine)
    return Outlook(replace(made, further_runs=further), tuple(sorted(finished)), free_bytes(store))
