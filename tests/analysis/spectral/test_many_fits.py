"""Many fits at once are the single fits, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scalespec.analysis.spectral import many_fits
from scalespec.analysis.spectral.many_fits import fits
from scalespec.analysis.spectral.power_law import NATIVE_RULE, WW_RULE, Rule, fit

RULES = (WW_RULE, NATIVE_RULE, Rule(min_tail=30), replace(WW_RULE, distinct=True), replace(NATIVE_RULE, distinct=True))


def samples_of(rng, n, count=40):
    kinds = (
        rng.pareto(1.5, (count, n)) + 1,
        rng.lognormal(0, 1, (count, n)),
        rng.standard_exponential((count, n)) + 1e-4,
    )
    rows = np.concatenate([*kinds, np.round(kinds[0], 1), rng.choice(kinds[1][0], (count, n)), np.ones((2, n))])
    return np.sort(rows, axis=1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 12, 19, 20, 41, 128, 300])
def test_every_row_is_the_single_fit(rule, n):
    samples = samples_of(np.random.default_rng(n), n)
    found = fits(samples, rule)
    for at, values in enumerate(samples):
        wanted = fit(values, rule)
        if wanted is None:
            assert np.isnan(found.alpha[at])
            assert found.tail[at] == 0
        else:
            assert (found.alpha[at], found.D[at], found.tail[at]) == (wanted.alpha, wanted.D, wanted.tail)


def test_large_samples_are_taken_a_few_rows_at_a_time_or_alone(monkeypatch):
    samples = samples_of(np.random.default_rng(0), 60, count=8)
    whole = fits(samples, WW_RULE)
    for name, value in (("AT_ONCE", 1000), ("ALONE", 59)):
        monkeypatch.setattr(many_fits, name, value)
        for one, other in zip(whole, fits(samples, WW_RULE), strict=True):
            np.testing.assert_array_equal(one, other)


def test_no_sample_no_fit():
    assert len(fits(np.empty((0, 10)), WW_RULE).alpha) == 0
