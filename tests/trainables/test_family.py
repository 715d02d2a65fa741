from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.trainables.family import (
    FamilySchedule,
    RunSchedule,
    checkpoint_steps,
    family_schedule,
    is_logged,
    run_schedule,
    steps_of,
)
from scalespec.trainables.rules import schedules
from scalespec.trainables.spec import RunSpec
from studies import toy_grid


@given(st.integers(1, 10**7), st.integers(2, 60))
def test_checkpoints_hold_both_ends_and_no_more_than_asked(steps, count):
    kept = checkpoint_steps(steps, count)
    assert kept[0] == 0
    assert kept[-1] == steps
    assert len(kept) <= max(2, count)
    assert kept == sorted(set(kept))


@pytest.mark.parametrize("count", [4, 8])
def test_the_runs_of_a_halving_family_share_their_trunk_checkpoints(count):
    kept = [set(checkpoint_steps(steps, count)) for steps in (3750, 1875, 937)]
    assert kept[0] & kept[1] - {0}
    assert kept[1] & kept[2] - {0}


def test_checkpoints_are_log_spaced():
    assert checkpoint_steps(3750, 8) == [0, 64, 128, 256, 512, 1024, 2048, 3750]


@pytest.mark.parametrize("steps", [100, 1000, 12345])
def test_logged_steps_are_dense_at_first_and_thin_later(steps):
    logged = [step for step in range(1, steps + 1) if is_logged(step)]
    assert logged[:63] == list(range(1, 64))
    for octave in range(7, steps.bit_length() - 1):
        inside = [step for step in logged if 2**octave <= step < 2 ** (octave + 1)]
        assert len(inside) == 32


@given(st.integers(1, 10**6), st.fractions(Fraction(1, 1000), 1), st.integers(1, 512))
def test_only_whole_batches_are_trained(examples, fraction, batch):
    steps = steps_of(examples, fraction, 1, batch)
    assert steps * batch <= fraction * examples < (steps + 1) * batch + 1


def family_of(**changes) -> list[RunSpec]:
    return toy_grid(grid={"width": [8]}, **changes).families().popitem()[1]


def test_a_family_branches_where_its_cooldowns_start():
    schedule = family_schedule(family_of(), 2048)
    assert schedule.shares_trunk
    assert [run.steps for run in schedule.runs] == [32, 64, 128]
    assert [run.branch for run in schedule.runs] == [24, 48, 96]
    assert [run.kept for run in schedule.runs] == [(0, 4, 8, 16, 32), (0, 8, 16, 32, 64), (0, 16, 32, 64, 128)]
    assert [run.kept_of_trunk for run in schedule.runs] == [(0, 4, 8, 16), (0, 8, 16, 32), (0, 16, 32, 64)]
    assert schedule.trunk_kept == (0, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("name", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("train", [{}, {"epochs": 2}, {"reuse_trunk": False}])
def test_a_trunk_is_shared_where_nothing_before_the_branch_depends_on_the_fraction(name, train):
    family = family_of(schedule={"name": name}, train=train)
    schedule = family_schedule(family, 2048)
    assert schedule.shares_trunk is (name != "cosine" and not train)
    for spec, run in zip(family, schedule.runs, strict=True):
        assert run == run_schedule(spec, 2048, schedule.shares_trunk)
        assert run.branch == (schedules.branch_step(spec.schedule, run.steps) if schedule.shares_trunk else None)


def test_a_single_run_has_nobody_to_share_with():
    schedule = family_schedule(family_of()[:1], 2048)
    assert not schedule.shares_trunk
    assert schedule.trunk_kept == ()
    assert schedule.executed([schedule.runs[0].run_key]) == {schedule.runs[0].run_key: schedule.runs[0].steps}


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=6), st.data())
def test_a_family_executes_its_longest_trunk_once_and_every_cooldown(parts, data):
    ordered = sorted((steps, int(share * steps)) for steps, share in parts)
    runs = tuple(RunSchedule(str(i), steps, branch, (0, steps)) for i, (steps, branch) in enumerate(ordered))
    keys = data.draw(st.sets(st.sampled_from([run.run_key for run in runs]), min_size=1))
    executed = FamilySchedule(runs, True).executed(keys)
    chosen = [run for run in runs if run.run_key in keys]
    assert list(executed) == [run.run_key for run in chosen]
    trunk = max(run.branch for run in chosen)
    assert sum(executed.values()) == trunk + sum(run.steps - run.branch for run in chosen)
    assert all(steps >= 0 for steps in executed.values())
