"""The fit against a scan written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalespec.analysis.spectral import power_law
from scalespec.analysis.spectral.power_law import NATIVE_RULE, WW_RULE, Rule, fit, hill


def brute(values, two_sided=False, min_tail=2, small_sample=False):
    """Every candidate in full, from the definition, one by one."""
    n, best = len(values), None
    small = small_sample and n < 20
    for i in range(n - 1):
        tail = values[i:]
        m = len(tail)
        if m < (min(n, 8) if small else min_tail):
            continue
        total = np.sum(np.log(tail / tail[0]))
        if total <= 0:
            continue
        alpha = 1 + (m - 1 if small else m) / total
        cdf = 1 - (tail / tail[0]) ** (1 - alpha)
        left = np.abs(cdf - np.arange(m) / m).max()
        right = np.abs(cdf - np.arange(1, m + 1) / m).max()
        distance = max(left, right) if two_sided else left
        if best is None or distance < best[0] - 1e-13:
            best = (distance, alpha, tail[0], m)
    return best


def sample(rng, kind, n):
    if kind == 0:
        return np.sort(rng.pareto(rng.uniform(0.5, 4), n) + 1)
    if kind == 1:
        return np.sort(rng.lognormal(0, rng.uniform(0.2, 2), n))
    if kind == 2:
        return np.sort(rng.exponential(1, n) + 1e-4)
    matrix = rng.standard_t(3, (2 * n, n)) if n <= 60 else rng.gamma(2, 1, (2, n))
    return np.linalg.eigvalsh(matrix.T @ matrix) if n <= 60 else np.sort(matrix[0])


def test_three_thousand_samples_agree_with_the_definition():
    rng = np.random.default_rng(0)
    for at in range(3000):
        values = sample(rng, at % 4, int(rng.integers(20, 130)))
        found, wanted = fit(values), brute(values)
        assert found.xmin == wanted[2]
        assert found.tail == wanted[3]
        assert found.alpha == pytest.approx(wanted[1], rel=1e-9)
        assert abs(found.D - wanted[0]) <= 1e-9 * wanted[0]


@pytest.mark.parametrize("rule", [NATIVE_RULE, Rule(min_tail=30), Rule(two_sided=True)])
def test_other_rules_agree_with_the_definition(rule):
    rng = np.random.default_rng(1)
    for at in range(200):
        values = sample(rng, at % 4, int(rng.integers(35, 130)))
        found, wanted = fit(values, rule), brute(values, rule.two_sided, rule.min_tail)
        assert (found.xmin, found.tail) == (wanted[2], wanted[3])
        assert found.alpha == pytest.approx(wanted[1], rel=1e-9)


def test_below_twenty_points_the_corrected_estimator_and_tails_of_eight():
    rng = np.random.default_rng(2)
    for at in range(300):
        values = sample(rng, at % 3, int(rng.integers(8, 20)))
        found, wanted = fit(values, WW_RULE), brute(values, small_sample=True)
        assert found.tail >= 8
        assert (found.xmin, found.tail) == (wanted[2], wanted[3])
        assert found.alpha == pytest.approx(wanted[1], rel=1e-9)


def test_large_sample_agrees_with_the_definition():
    values = np.sort(np.random.default_rng(3).pareto(1.7, 3000) + 1)
    found, wanted = fit(values), brute(values)
    assert (found.xmin, found.tail) == (wanted[2], wanted[3])


def test_ties_are_fitted_as_they_stand():
    rng = np.random.default_rng(4)
    for _ in range(100):
        values = np.sort(np.round(rng.pareto(1.5, 60) + 1, 1))
        found, wanted = fit(values), brute(values)
        assert abs(found.D - wanted[0]) <= 1e-9 * wanted[0]
        assert found.alpha == pytest.approx(wanted[1], rel=1e-9)


def test_recovers_a_planted_exponent():
    values = np.sort((1 - np.random.default_rng(5).random(4000)) ** (-1 / 1.5))
    found = fit(values)
    assert found.alpha == pytest.approx(2.5, abs=0.1)
    assert found.sigma == pytest.approx((found.alpha - 1) / found.tail**0.5)
    assert found.xmax == values[-1]


@given(st.floats(1e-6, 1e6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_scaling_the_values_scales_xmin_alone(scale, seed):
    values = np.sort(np.random.default_rng(seed).pareto(2, 80) + 1)
    one, other = fit(values), fit(values * scale)
    assert other.alpha == pytest.approx(one.alpha, rel=1e-6)
    assert other.xmin == pytest.approx(one.xmin * scale, rel=1e-12)


@pytest.mark.parametrize("values", [np.ones(50), np.array([2.0]), np.array([]), np.full(30, 1e-3)])
def test_no_range_no_fit(values):
    assert fit(values) is None
    assert hill(values) is None


def test_profile_holds_every_candidate_and_its_minimum_is_the_fit():
    values = np.sort(np.random.default_rng(6).lognormal(0, 1, 90))
    xmin, distance, alpha = power_law.profile(values, WW_RULE)
    found = fit(values)
    at = int(np.argmin(distance))
    assert len(xmin) == 89
    assert (xmin[at], alpha[at], distance[at]) == (found.xmin, found.alpha, found.D)


def test_near_optimal_is_what_the_profile_says():
    rng = np.random.default_rng(7)
    for _ in range(30):
        values = np.sort(rng.lognormal(0, 1, 120))
        found = fit(values)
        _, distance, alpha = power_law.profile(values, WW_RULE)
        near = power_law.near_optimal(values, WW_RULE, found)
        assert sorted(near) == sorted(alpha[distance <= 1.05 * found.D])


def test_hill_from_its_formula():
    values = np.sort(np.random.default_rng(8).pareto(2, 101) + 1)
    tail = values[50:]
    assert hill(values) == pytest.approx(1 + len(tail) / np.sum(np.log(tail / tail[0])))
