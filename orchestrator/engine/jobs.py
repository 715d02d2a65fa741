"""From planned units to what the lanes are handed: a job for each run, with what the driver knows of its family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scalespec.orchestrator.engine.worker import Job
from scalespec.orchestrator.study.grid import Grid
from scalespec.orchestrator.study.units import Unit
from scalespec.trainables.family import family_schedule
from scalespec.trainables.spec import RunSpec


def with_jobs(units: Iterable[Unit], grid: Grid, asked: Sequence[RunSpec]) -> list[Unit]:
    """The units with their jobs, smallest data fraction first, so that each run extends the trunk of the one before.

    `asked` are all runs of the study, finished ones included: a trunk keeps weights where any run of its family wants them.
    """
    families: dict[str, list[RunSpec]] = {}
    for spec in asked:
        families.setdefault(spec.family_key, []).append(spec)
    planned = {spec.run_key: spec for spec in grid.runs}
    out = []
    for unit in units:
        specs = sorted((planned[key] for key in unit.run_keys), key=lambda spec: spec.data_fraction)
        prepared = grid.of(specs[0])
        whole = {spec.run_key: spec for spec in [*families.get(unit.family_key, []), *specs]}
        schedule = family_schedule(list(whole.values()), prepared.data.train_examples)
        counts = prepared.counts(specs[0].width)
        jobs = [Job(spec, counts, schedule.trunk_kept, schedule.shares_trunk) for spec in specs]
        out.append(replace(unit, jobs=tuple(job.to_json() for job in jobs)))
    return out
