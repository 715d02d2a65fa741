from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.trainables.family import checkpoint_steps, is_logged, steps_of


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
