"""The verdict has two sides: random matrices are not trusted, planted tails are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from scalespec.analysis.spectral import analyze
from scalespec.analysis.spectral.nulls import wishart_eigenvalues
from scalespec.analysis.spectral.power_law import WW_RULE, Fit
from scalespec.analysis.spectral.trust import (
    exponential_log_density,
    interval,
    lognormal_log_density,
    modes,
    prominent_peaks,
    vuong,
)

PLAIN = {"kind": "dense", "keep_eigenvalues": False, "precision": "float32"}


def orthogonal(n, m, rng):
    q, r = np.linalg.qr(rng.standard_normal((n, m)))
    return q * np.sign(np.diag(r))


def planted(n, tail, rng, way):
    """An n × n matrix whose `tail` largest eigenvalues follow a power law of exponent 2.5."""
    heavy = (1 - rng.random(tail)) ** (-1 / 1.5)
    if way == "added":
        noise = rng.standard_normal((n, n)) * np.sqrt(0.2 / (4 * n))
        weight = noise + orthogonal(n, tail, rng) * np.sqrt(heavy) @ orthogonal(n, tail, rng).T
        return weight.astype(np.float32)
    bulk = wishart_eigenvalues(n, n, 1, rng)[0, : n - tail]
    values = np.concatenate((bulk / bulk[-1], heavy))
    return (orthogonal(n, n, rng) * np.sqrt(values) @ orthogonal(n, n, rng).T).astype(np.float32)


def share(matrices, profile):
    return np.mean([bool(analyze(w, profile=profile, seed=at, **PLAIN)["trusted"]) for at, w in enumerate(matrices)])


@pytest.mark.parametrize("profile", ["ww-0.7.7", "native"])
@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (1024, 192)])
def test_gaussian_matrices_are_not_trusted(shape, profile):
    rng = np.random.default_rng(100)
    assert share((rng.standard_normal(shape).astype(np.float32) * 0.02 for _ in range(12)), profile) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(64, 64), (384, 384), (768, 768), (1024, 768), (2304, 768), (3072, 768), (8192, 256)]
)
def test_at_most_one_in_twenty_gaussian_matrices_is_trusted(shape):
    rng = np.random.default_rng(101)
    assert share((rng.standard_normal(shape).astype(np.float32) * 0.02 for _ in range(20)), "ww-0.7.7") <= 0.05


@pytest.mark.parametrize("way", ["joined", "added"])
@pytest.mark.parametrize("profile", ["ww-0.7.7", "native"])
def test_planted_tails_are_trusted_at_384(way, profile):
    rng = np.random.default_rng(102)
    assert share((planted(384, 50, rng, way) for _ in range(20)), profile) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("way", ["joined", "added"])
def test_planted_tails_are_trusted_at_768(way):
    rng = np.random.default_rng(103)
    assert share((planted(768, 100, rng, way) for _ in range(20)), "ww-0.7.7") >= 0.8


def trained_like(seed=0):
    return planted(256, 60, np.random.default_rng(seed), "joined")


def test_a_check_that_was_not_computed_leaves_the_verdict_open():
    whole = analyze(trained_like(), kind="dense")
    assert (whole["trusted"], whole["why"]) == (True, None)
    some = analyze(trained_like(), kind="dense", randomize=False)
    assert some["trusted"] is None
    assert some["why"] == "not computed: traps; not computed: like its shuffle"


def test_a_failed_check_outweighs_one_not_computed():
    weight = np.random.default_rng(1).standard_normal((256, 256))
    row = analyze(weight, kind="dense", randomize=False)
    assert row["trusted"] is False
    assert "fits no better than random" in row["why"]
    assert "not computed: traps" in row["why"]


def test_vectors_count_only_where_asked_for():
    weight = trained_like()
    # the planted directions are spread over all coordinates: no tail vector is localised
    without, with_ = analyze(weight, kind="dense"), analyze(weight, kind="dense", vectors=True)
    localised = with_["tail_mean_vec_entropy"] < with_["bulk_mean_vec_entropy"]
    assert without["trusted"] is True
    assert ("tail vectors not localised" in (with_["why"] or "")) is not localised


def test_below_128_values_the_layer_is_too_small_and_hill_stands_against_its_null():
    row = analyze(np.random.default_rng(2).standard_normal((300, 127)), kind="dense")
    assert (row["status"], row["trusted"], row["why"]) == ("ok", False, "too small")
    assert row["alpha_hill_null_lo"] < row["alpha_hill_null_hi"]
    assert "alpha_lo" not in row
    assert analyze(np.random.default_rng(2).standard_normal((300, 128)), kind="dense")["why"] != "too small"


def test_planted_correlation_traps_are_named():
    weight = trained_like()
    weight[3, 4] = weight[100, 7] = 60.0
    assert "traps" in analyze(weight, kind="dense")["why"]


def test_rank_loss_is_named():
    weight = trained_like().astype(np.float64)
    u, s, v = np.linalg.svd(weight)
    s[-5:] = 0
    assert "rank loss" in analyze(u * s @ v, kind="dense")["why"]


def test_a_verdict_depends_on_nothing_but_its_input():
    rows = [analyze(trained_like(), kind="dense", seed=5, keep_eigenvalues=False) for _ in range(2)]
    assert rows[0] == rows[1]


def test_intervals_of_level_90_cover_the_planted_exponent_and_narrow_with_the_sample():
    rng = np.random.default_rng(3)
    widths = {}
    for n in (100, 400):
        found = np.array([interval(np.sort((1 - rng.random(n)) ** (-1 / 1.5)), WW_RULE, at, 60) for at in range(40)])
        assert 0.75 <= np.mean((found[:, 0] < 2.5) & (found[:, 1] > 2.5)) <= 1
        widths[n] = np.median(found[:, 1] - found[:, 0])
    assert widths[400] < 0.8 * widths[100]


def test_exponential_and_power_law_are_told_apart():
    rng = np.random.default_rng(4)
    power = np.sort((1 - rng.random(800)) ** (-1 / 1.5))
    tail = Fit(1 + 800 / np.log(power / power[0]).sum(), power[0], power[-1], 0, 0, 800)
    ratio, p = vuong(power, tail, exponential_log_density(power))
    assert ratio > 0
    assert p < 0.01
    flat = np.sort(rng.exponential(1, 800) + 3)
    tail = Fit(1 + 800 / np.log(flat / flat[0]).sum(), flat[0], flat[-1], 0, 0, 800)
    ratio, p = vuong(flat, tail, exponential_log_density(flat))
    assert ratio < 0
    assert p < 0.01


def test_truncated_lognormal_is_the_maximum_likelihood_one():
    rng = np.random.default_rng(5)
    draws = rng.lognormal(0.5, 0.8, 3000)
    tail = np.sort(draws[draws > 1.2])
    alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
    found = lognormal_log_density(tail, Fit(alpha, tail[0], tail[-1], 0, 0, len(tail)))

    def loss(p):
        mu, sigma = p[0], np.exp(p[1])
        y = np.log(tail)
        return -np.sum(stats.norm.logpdf(y, mu, sigma) - stats.norm.logsf(np.log(tail[0]), mu, sigma) - y)

    best = optimize.minimize(
        loss, [0, 0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9, "maxiter": 4000}
    )
    assert found.sum() == pytest.approx(-best.fun, abs=1e-4)


def test_a_tail_heavier_than_any_lognormal_is_the_power_law_itself():
    tail = np.exp(np.sort(np.r_[np.zeros(1), np.full(50, 1e-3), 5.0, 6.0]))
    fitted = Fit(1 + len(tail) / np.log(tail / tail[0]).sum(), tail[0], tail[-1], 0, 0, len(tail))
    assert vuong(tail, fitted, lognormal_log_density(tail, fitted)) == (pytest.approx(0, abs=1e-9), 1.0)


def test_modes_of_one_two_and_no_bump():
    rng = np.random.default_rng(6)
    one, far = np.exp(rng.normal(0, 0.5, 400)), np.exp(rng.normal(6, 0.5, 400))
    assert modes(np.sort(one)) == 1
    assert modes(np.sort(np.r_[one, far])) == 2
    assert modes(np.ones(10)) == 1
    false_alarms = [modes(np.sort(rng.pareto(1.5, n) + 1)) > 1 for n in (20, 50, 100) for _ in range(200)]
    assert np.mean(false_alarms) < 0.01


def test_prominent_peaks_are_those_of_scipy():
    from scipy.signal import find_peaks

    rng = np.random.default_rng(0)
    for _ in range(500):
        density = np.abs(np.cumsum(rng.standard_normal(rng.integers(1, 60))))
        prominence = rng.uniform(0.01, 3)
        expected = find_peaks(np.pad(density, 1), prominence=prominence)[0]
        assert prominent_peaks(density, prominence) == len(expected)
