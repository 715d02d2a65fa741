from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.trainables.errors import TaskError
from scalespec.trainables.rules.schedules import SCHEDULES, branch_step, multiplier
from scalespec.trainables.spec import ScheduleConfig


def curve(schedule: ScheduleConfig, steps: int, batch: int = 1) -> list[float]:
    return [multiplier(schedule, step, steps, batch) for step in range(steps + 1)]


def test_cooldown_is_one_minus_square_root():
    """Hägele et al. 2024: at a quarter of the cooldown the rate is halved, at its end zero."""
    schedule = ScheduleConfig("wsd", cooldown=0.2)
    assert branch_step(schedule, 1000) == 800
    assert multiplier(schedule, 799, 1000, 1) == 1
    assert multiplier(schedule, 800, 1000, 1) == 1
    assert multiplier(schedule, 850, 1000, 1) == pytest.approx(0.5)
    assert multiplier(schedule, 962, 1000, 1) == pytest.approx(0.1)
    assert multiplier(schedule, 1000, 1000, 1) == 0


def test_every_update_of_a_run_has_a_positive_rate():
    for name in SCHEDULES:
        assert min(curve(ScheduleConfig(name, warmup=32, cooldown=0.5), 100, 8)[:-1]) > 0


def test_warmup_is_counted_in_samples():
    schedule = ScheduleConfig("constant", warmup=512)
    assert multiplier(schedule, 0, 1000, 16) == 16 / 512
    assert multiplier(schedule, 15, 1000, 16) == 0.5
    assert multiplier(schedule, 31, 1000, 16) == 1
    assert multiplier(schedule, 7, 1000, 32) == 0.5
    assert multiplier(schedule, 0, 1000, 1024) == 1


def test_warmup_may_outlast_the_run():
    for name in ("wsd", "cosine", "constant"):
        values = curve(ScheduleConfig(name, warmup=10_000), 10)[:-1]
        assert values[0] == pytest.approx(1e-4)
        assert max(values) <= 10 / 10_000


def test_cosine_falls_from_the_end_of_warmup_to_zero():
    schedule = ScheduleConfig("cosine", warmup=100)
    values = curve(schedule, 1100)
    assert values[99] == values[100] == 1
    assert values[600] == pytest.approx(0.5)
    assert values[350] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert values[1100] == pytest.approx(0, abs=1e-15)
    assert all(a >= b for a, b in itertools.pairwise(values[100:]))


def test_ramp_grows_linearly_to_the_peak():
    values = curve(ScheduleConfig("ramp", warmup=5000), 200)
    assert values[0] == 1 / 200
    assert values[99] == 0.5
    assert values[199] == 1


def test_branch_steps():
    assert branch_step(ScheduleConfig("wsd", cooldown=0.2), 117) == 94
    assert branch_step(ScheduleConfig("wsd", cooldown=0.0), 117) == 117
    assert branch_step(ScheduleConfig("wsd", cooldown=1.0), 117) == 0
    assert branch_step(ScheduleConfig("constant"), 117) == 117
    assert branch_step(ScheduleConfig("cosine"), 117) is None
    assert branch_step(ScheduleConfig("ramp"), 117) is None


@given(
    name=st.sampled_from(("wsd", "constant")),
    warmup=st.integers(0, 5000),
    cooldown=st.floats(0, 1),
    steps=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    batch=st.integers(1, 64),
)
def test_runs_of_a_family_have_equal_rates_up_to_the_branch(name, warmup, cooldown, steps, batch):
    """Bit for bit: a trunk trained for the longer run serves the shorter one."""
    schedule = ScheduleConfig(name, warmup, cooldown)
    short, long = sorted(steps)
    shared = min(branch_step(schedule, short), branch_step(schedule, long))
    assert curve(schedule, short, batch)[:shared] == curve(schedule, long, batch)[:shared]


@given(
    name=st.sampled_from(SCHEDULES),
    warmup=st.integers(0, 5000),
    cooldown=st.floats(0, 1),
    steps=st.integers(1, 200),
    batch=st.integers(1, 64),
)
def test_multiplier_stays_within_zero_and_one(name, warmup, cooldown, steps, batch):
    assert all(0 <= value <= 1 for value in curve(ScheduleConfig(name, warmup, cooldown), steps, batch))


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (ScheduleConfig("linear"), "schedule.name"),
        (ScheduleConfig(cooldown=1.5), "schedule.cooldown"),
        (ScheduleConfig(cooldown=math.nan), "schedule.cooldown"),
        (ScheduleConfig(warmup=-1), "schedule.warmup"),
    ],
)
def test_impossible_schedules_are_refused(schedule, key):
    for ask in (lambda: multiplier(schedule, 0, 10, 1), lambda: branch_step(schedule, 10)):
        with pytest.raises(TaskError, match=key):
            ask()
