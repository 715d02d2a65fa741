"""What lanes are handed: every run once, in order, with what the driver knows of its whole family."""

from __future__ import annotations

import json

from trained import jobs, prepared

from scalespec.orchestrator.engine.jobs import with_jobs
from scalespec.orchestrator.engine.worker import Job
from scalespec.orchestrator.study.units import Unit
from studies import toy_grid


def test_jobs_know_the_steps_of_their_whole_family():
    """A run that is added to a finished family still keeps the trunk's weights where the others want them."""
    grid = toy_grid()
    first, *_ = grid.runs
    asked = Unit(7, first.family_key, (first.run_key,), 1, 1.0)
    (unit,) = with_jobs([asked], grid, grid.runs)
    (job,) = (Job.from_json(job) for job in unit.jobs)
    assert (unit.number, job.spec) == (7, first)
    assert job.shares_trunk
    # 128 steps keep 0 16 32 64 128, 64 keep 0 8 16 32 64, 32 keep 0 4 8 16 32; a trunk ends at three quarters of each
    assert job.trunk_kept == (0, 4, 8, 16, 32, 64)
    (alone,) = with_jobs([asked], grid, [first])
    assert not Job.from_json(alone.jobs[0]).shares_trunk


def test_jobs_go_from_the_smallest_fraction_up_and_survive_json(tmp_path):
    study = prepared(tmp_path / "toy", grid={"width": [8], "seed": [0, 1]})
    made = jobs(study)
    assert {job.spec.run_key for job in made} == {spec.run_key for spec in study.specs}
    for family in study.grid.families():
        fractions = [job.spec.data_fraction for job in made if job.spec.family_key == family]
        assert fractions == sorted(fractions)
        assert len(fractions) == 3
    for job in made:
        assert job.counts == study.grid.of(job.spec).counts(8)
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
