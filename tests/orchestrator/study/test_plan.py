from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.orchestrator.run import all_jobs
from scalespec.orchestrator.study.plan import (
    START_UPS_HELD,
    Machine,
    Unit,
    make_plan,
    pack_units,
    probe,
    schedules,
    speed_key,
    with_workers,
)
from scalespec.trainables.probe import Speed
from studies import toy, toy_grid

SPEED = Speed(step_s=0.01, eval_example_s=0.0, commit_s=0.0, build_s=0.0, weights_bytes=1000, state_bytes=3000)


def unit(seconds: float) -> Unit:
    return Unit((), seconds)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.integers(1, 8))
def test_packs_hold_every_unit_once_and_balance(seconds, lanes):
    units = [unit(s) for s in seconds]
    packs = pack_units(units, lanes, start_up=1e9)
    assert sorted(u.seconds for pack in packs for u in pack) == sorted(seconds)
    assert len(packs) == min(lanes, len(units))
    longest = max(sum(u.seconds for u in pack) for pack in packs)
    # Graham's bound for longest processing time first, against the two lower bounds of any schedule
    best = max(max(seconds), sum(seconds) / len(packs))
    assert longest <= best * 4 / 3 + max(seconds) / 3 + 1e-9


@given(st.lists(st.floats(0.1, 500), min_size=1, max_size=60), st.integers(1, 4))
def test_further_packs_hold_their_start_up_twenty_times_over(seconds, lanes):
    packs = pack_units([unit(s) for s in seconds], lanes, start_up=1.0)
    if len(packs) > lanes:
        assert sum(seconds) / len(packs) >= START_UPS_HELD


def planned(machine=Machine(2, 0), **changes):  # noqa: B008
    study, grid = toy(**changes), toy_grid(**changes)
    speeds = {speed_key(spec): SPEED for spec in grid.runs}
    return grid, make_plan(study, grid, grid.runs, speeds, machine)


def test_families_stay_in_one_pack_and_share_their_trunk():
    _, plan = planned()
    by_family: dict[str, set[int]] = {}
    for run in plan.runs:
        by_family.setdefault(run.family_key, set()).add(run.pack)
    assert all(len(packs) == 1 for packs in by_family.values())
    steps = {run.run_key: run.steps for run in plan.runs}
    longest = max(steps.values())
    one_family = [run for run in plan.runs if run.family_key == plan.runs[0].family_key]
    executed = sum(run.seconds for run in one_family) / SPEED.step_s
    assert executed == pytest.approx(0.75 * longest + 0.25 * sum(steps[run.run_key] for run in one_family))


def test_without_reuse_every_run_stands_alone():
    _, plan = planned(train={"reuse_trunk": False})
    assert sum(run.seconds for run in plan.runs) / SPEED.step_s == pytest.approx(sum(run.steps for run in plan.runs))


def test_totals_add_up_and_nothing_is_lost():
    grid, plan = planned(resources={"price_per_hour": 3.6})
    assert {key for pack in plan.packs for key in pack.run_keys} == {spec.run_key for spec in grid.runs}
    assert plan.disk_bytes == sum(run.disk_bytes for run in plan.runs)
    assert plan.flops_train == sum(run.flops_train for run in plan.runs)
    assert plan.cost_usd > 0
    steps = {run.run_key: run.steps for family in schedules(grid).values() for run in family.runs}
    assert {run.run_key: run.steps for run in plan.runs} == steps


def test_short_runs_are_warned_of():
    _, plan = planned()
    assert all((run.steps < 200) == any("steps" in note for note in run.warnings) for run in plan.runs)
    assert any(run.warnings for run in plan.runs)


@pytest.mark.parametrize(
    ("step_s", "widths", "cpus", "workers"),
    [(0.01, [8], 4, {1}), (100.0, [8], 4, {4}), (100.0, [8, 16], 2, {1}), (100.0, [8, 16, 24, 32, 40], 2, {1})],
)
def test_only_a_family_that_would_be_left_running_gets_more_workers(step_s, widths, cpus, workers):
    study, grid = toy(grid={"width": widths}), toy_grid(grid={"width": widths})
    speeds = {speed_key(spec): replace(SPEED, step_s=step_s) for spec in grid.runs}
    chosen = with_workers(study, grid, speeds, Machine(cpus, 0))
    assert {spec.train.workers for spec in chosen.runs} == workers
    assert [spec.run_key for spec in chosen.runs] == [spec.run_key for spec in grid.runs]
    fixed = with_workers(toy(train={"workers": 2}), toy_grid(train={"workers": 2}), speeds, Machine(cpus, 0))
    assert {spec.train.workers for spec in fixed.runs} == {2}


@pytest.mark.parametrize(
    ("machine", "workers", "lanes"),
    [
        (Machine(2, 0), 1, 2),
        (Machine(2, 0), 2, 1),
        (Machine(8, 4), 1, 4),
        (Machine(8, 4), 2, 2),
        (Machine(8, 0, 4), 1, 2),
    ],
)
def test_lanes(machine, workers, lanes):
    assert machine.lanes(workers) == lanes


def test_a_probe_measures_real_steps():
    grid = toy_grid(grid={"width": [8, 16]})
    speeds = probe(grid, grid.runs, seconds=0.05)
    assert len(speeds) == 2
    for speed in speeds.values():
        assert 1e-5 < speed.step_s < 1.0
        assert speed.commit_s > 0
        assert math.isfinite(speed.eval_example_s)
    small, large = (speeds[speed_key(spec)] for spec in (grid.runs[0], grid.runs[-1]))
    assert large.weights_bytes > small.weights_bytes


def test_jobs_know_the_steps_of_their_whole_family():
    grid = toy_grid()
    jobs = all_jobs(grid, grid.runs[:1])
    assert list(jobs) == [grid.runs[0].run_key]
    job = jobs[grid.runs[0].run_key]
    assert job.shares_trunk
    # 128 steps keep 0 16 32 64 128, 64 keep 0 8 16 32 64, 32 keep 0 4 8 16 32; a trunk ends at three quarters of each
    assert job.trunk_kept == (0, 4, 8, 16, 32, 64)
    assert type(job).from_json(job.to_json()) == job
