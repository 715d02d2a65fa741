"""What a study will take, from the speeds of its kinds of run: units, lanes, time, disk, money."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.orchestrator.study import plan as plan_module
from scalespec.orchestrator.study.grid import Grid
from scalespec.orchestrator.study.plan import (
    Plan,
    make_plan,
    probe,
    run_seconds,
    schedules,
    speed_key,
    units_of,
    with_workers,
)
from scalespec.orchestrator.study.resources import Machine
from scalespec.trainables.probe import Speed
from studies import toy, toy_grid

SPEED = Speed(step_s=0.01, eval_example_s=0.0, commit_s=0.0, build_s=0.0, weights_bytes=1000, state_bytes=3000)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.integers(1, 8))
def test_lanes_that_take_the_longest_unit_first_end_within_grahams_bound(seconds, lanes):
    took = plan_module._makespan(sorted(seconds, reverse=True), lanes)
    best = max(max(seconds), sum(seconds) / lanes)  # no schedule is shorter than either
    # Graham 1969: the last unit begins when every lane is busy, so no later than the others' mean
    assert best - 1e-9 <= took <= sum(seconds) / lanes + max(seconds) * (1 - 1 / lanes) + 1e-9


def planned(machine: Machine | None = None, **changes) -> tuple[Grid, Plan]:
    study, grid = toy(**changes), toy_grid(**changes)
    speeds = {speed_key(spec): SPEED for spec in grid.runs}
    return grid, make_plan(study, grid, grid.runs, speeds, machine or Machine(2, 0))


def test_a_family_that_shares_its_trunk_is_one_unit():
    grid, plan = planned()
    assert len(plan.units) == len(grid.families()) == 2
    units = {unit.number: unit for unit in plan.units}
    for run in plan.runs:
        assert run.run_key in units[run.unit].run_keys
        assert units[run.unit].family_key == run.family_key
    steps = {run.run_key: run.steps for run in plan.runs}
    longest = max(steps.values())
    one_family = [run for run in plan.runs if run.family_key == plan.runs[0].family_key]
    executed = sum(run.seconds for run in one_family) / SPEED.step_s
    assert executed == pytest.approx(0.75 * longest + 0.25 * sum(steps[run.run_key] for run in one_family))


def test_units_are_numbered_from_the_longest_on_and_a_further_round_goes_on_counting():
    grid = toy_grid(grid={"width": [8], "seed": [0, 1, 2]})
    slow = {spec.family_key: place for place, spec in enumerate(grid.runs)}
    seconds = {spec.run_key: float(1 + slow[spec.family_key]) for spec in grid.runs}
    units = units_of(grid, schedules(grid), grid.runs, seconds, first=5)
    assert [unit.number for unit in units] == [5, 6, 7]
    assert [unit.seconds for unit in units] == sorted((unit.seconds for unit in units), reverse=True)
    for unit in units:
        assert unit.seconds == pytest.approx(sum(seconds[key] for key in unit.run_keys))
        assert unit.jobs == ()


def test_what_is_left_of_a_family_still_counts_from_its_smallest_fraction():
    """A longer trunk is trained once: the runs that are left pay what the finished ones have not."""
    grid = toy_grid(grid={"width": [8]})
    speeds, families = {speed_key(spec): SPEED for spec in grid.runs}, schedules(grid)
    small, middle, large = sorted(grid.runs, key=lambda spec: spec.data_fraction)
    (unit,) = units_of(grid, families, [large, middle], run_seconds(grid, families, [large, middle], speeds))
    assert unit.run_keys == (middle.run_key, large.run_key)
    alone = run_seconds(grid, families, [large], speeds)[large.run_key]
    assert unit.seconds < alone + run_seconds(grid, families, [middle], speeds)[middle.run_key]
    assert small.run_key not in unit.run_keys


def test_without_reuse_every_run_stands_alone():
    grid, plan = planned(train={"reuse_trunk": False})
    assert [unit.run_keys for unit in plan.units] == [(key,) for unit in plan.units for key in unit.run_keys]
    assert len(plan.units) == len(grid.runs)
    assert sum(run.seconds for run in plan.runs) / SPEED.step_s == pytest.approx(sum(run.steps for run in plan.runs))


def test_totals_add_up_and_nothing_is_lost():
    grid, plan = planned(resources={"price_per_hour": 3.6})
    assert sorted(key for unit in plan.units for key in unit.run_keys) == sorted(spec.run_key for spec in grid.runs)
    assert sum(unit.seconds for unit in plan.units) == pytest.approx(sum(run.seconds for run in plan.runs))
    assert plan.disk_bytes == sum(run.disk_bytes for run in plan.runs)
    assert plan.flops_train == sum(run.flops_train for run in plan.runs)
    assert plan.cost_usd > 0
    steps = {run.run_key: run.steps for family in schedules(grid).values() for run in family.runs}
    assert {run.run_key: run.steps for run in plan.runs} == steps


def test_start_up_is_paid_once_for_each_lane_that_is_used():
    for count, lanes in ((1, 1), (2, 2), (5, 2)):
        _, plan = planned(grid={"width": [8], "data_fraction": ["1"], "seed": list(range(count))})
        busy = sum(unit.seconds for unit in plan.units)
        starts = lanes * plan_module.LANE_START_UP_S
        assert plan.lanes == lanes
        assert plan.start_up_share == pytest.approx(starts / (starts + busy))


def test_a_finished_study_takes_no_time():
    study, grid = toy(), toy_grid()
    plan = make_plan(study, grid, [], {}, Machine(2, 0))
    assert (plan.runs, plan.units, plan.seconds, plan.start_up_share) == ((), (), 0.0, 0.0)


def test_two_asks_are_shown_as_one_plan():
    _, first = planned(resources={"price_per_hour": 3.6})
    _, second = planned(grid={"width": [32]}, resources={"price_per_hour": 3.6})
    both = first.followed_by(second)
    assert both.runs == first.runs + second.runs
    assert both.units == first.units + second.units
    # Ray, the data and the lanes are there
    assert both.seconds == pytest.approx(first.seconds + second.training_seconds + second.spectra_seconds)
    assert first.seconds < both.seconds < first.seconds + second.seconds
    for name in ("disk_bytes", "cost_usd", "flops_train"):
        assert getattr(both, name) == pytest.approx(getattr(first, name) + getattr(second, name)), name
    assert first.followed_by(replace(second, cost_usd=None)).cost_usd is None
    json.dumps(both.to_json(), allow_nan=False)


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
