"""Bulk fit, shuffled distance, trace-log condition and windows, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, optimize
from scipy.spatial.distance import jensenshannon

from scalespec.analysis.spectral import random_matrix
from scalespec.analysis.spectral.random_matrix import (
    fit_bulk,
    jensen_shannon,
    marchenko_pastur,
    trace_log,
    triangular_density,
)


def spectrum(N, M, seed=0, scale=1.0):
    weight = np.random.default_rng(seed).standard_normal((N, M)) * scale
    return np.linalg.eigvalsh(weight.T @ weight).clip(0)


def test_triangular_density_is_the_kernel_sum():
    x = np.sort(np.random.default_rng(0).exponential(1, 200))
    at = np.linspace(-0.2, x[-1] + 0.5, 333)
    direct = np.maximum(1 - np.abs(at[:, None] - x) / 0.1, 0).sum(axis=1) / (200 * 0.1)
    np.testing.assert_allclose(triangular_density(x, at, 0.1), direct, atol=1e-11)


def naive_sigma(values, N, M):
    """The fit from its description: density by the kernel sum, brute force over 195 widths, simplex."""
    x, Q = values * len(values) / values.sum(), N / M
    data = np.sqrt(x) if Q == 1 else x
    grid = np.linspace(0, data.max() + 0.5, 1000)
    density = np.maximum(1 - np.abs(grid[:, None] - data) / 0.1, 0).sum(axis=1) / (len(x) * 0.1)
    grid, density = grid[density > 0.01], density[density > 0.01]

    def loss(p):
        s = float(np.squeeze(p))
        if Q == 1:
            return np.sum((np.sqrt(np.maximum(4 - grid**2, 0)) / (np.pi * s * s) - density) ** 2)
        a, b = (s * (1 - Q**-0.5)) ** 2, (s * (1 + Q**-0.5)) ** 2
        mode = grid[np.argmax(density)]
        if b < mode or b > grid[-1] or a > mode:
            return 1e6 * len(grid)
        law = np.zeros_like(grid)
        inside = (grid > a) & (grid < b)
        law[inside] = Q / (2 * np.pi * s * s * grid[inside]) * np.sqrt((b - grid[inside]) * (grid[inside] - a))
        return np.sum((law - density) ** 2)

    unit = np.sqrt(x.max()) / (1 + Q**-0.5)
    return float(optimize.brute(loss, (slice(0.05 * unit, 2 * unit, 0.01 * unit),))[0])


@pytest.mark.parametrize(("N", "M"), [(200, 200), (300, 100), (128, 96)])
def test_bulk_fit_follows_its_description(N, M):
    values = spectrum(N, M)
    assert fit_bulk(values, N, M).sigma == pytest.approx(naive_sigma(values, N, M), rel=1e-8)


@pytest.mark.parametrize(("N", "M"), [(400, 400), (1200, 300)])
def test_a_gaussian_matrix_is_all_bulk(N, M):
    values = spectrum(N, M, scale=0.02)
    found = fit_bulk(values, N, M)
    assert found.spikes == 0
    assert found.sigma == pytest.approx(1, abs=0.03)
    assert found.upper == pytest.approx(0.02**2 * N * (1 + (M / N) ** 0.5) ** 2, rel=0.06)
    assert found.softrank == pytest.approx(found.upper / values[-1])


def test_planted_spikes_are_counted():
    values = np.sort(np.concatenate((spectrum(900, 300)[:-4], [9e3, 9.5e3, 1e4, 1.1e4])))
    assert fit_bulk(values, 900, 300).spikes == 4


def test_a_spectrum_between_the_grid_points_has_no_bulk():
    assert fit_bulk(np.r_[np.full(999, 0.25), 750.25], 2000, 1000) is None


@pytest.mark.parametrize("Q", [1.5, 3.0, 32.0])
def test_marchenko_pastur_is_a_density_of_mean_one(Q):
    a, b = (1 - Q**-0.5) ** 2, (1 + Q**-0.5) ** 2
    mass = integrate.quad(lambda x: float(marchenko_pastur(np.array(x), Q)), a, b)[0]
    mean = integrate.quad(lambda x: x * float(marchenko_pastur(np.array(x), Q)), a, b)[0]
    assert (mass, mean) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_jensen_shannon_is_scipys_and_vanishes_on_itself():
    p, q = spectrum(60, 40), spectrum(60, 40, seed=1)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q), rel=1e-10)
    assert jensen_shannon(p, 3 * p) == pytest.approx(0, abs=1e-7)
    assert np.isfinite(jensen_shannon(np.r_[0.0, p], np.r_[q, 5.0]))


def test_trace_log_tail_is_the_first_with_a_product_under_one():
    values = spectrum(150, 100)
    size, first = trace_log(values)
    x = values * len(values) / values.sum()
    assert size == len(values) - first
    assert np.prod(x[first:]) < 1 <= np.prod(x[first + 1 :])


def test_trace_log_does_not_overflow_where_the_product_does():
    x = np.sort(np.random.default_rng(2).lognormal(0, 3, 5000))
    size, first = trace_log(x)
    scaled = np.log(x * len(x) / x.sum())
    assert scaled[first:].sum() < 0 <= scaled[first + 1 :].sum()
    assert size == 5000 - first


def test_trace_log_edges():
    assert trace_log(np.ones(30)) == (0, 0)
    assert trace_log(np.array([1.0])) == (0, 0)
    assert trace_log(np.r_[np.zeros(10), np.ones(5)])[0] == 6


def test_windows_remove_the_bias_of_the_shape():
    rng = np.random.default_rng(3)
    square, tall = rng.standard_normal((384, 384)), rng.standard_normal((1536, 384))
    whole = [random_matrix.hill(spectrum(*m.shape)) for m in (square, tall)]
    found = [random_matrix.windowed_hill(m) for m in (square, tall)]
    assert whole[1] - whole[0] > 0.8
    assert abs(found[1] - found[0]) < 0.05
    # https://arxiv.org/abs/2506.06280: one value for every shape; 128 × 128 windows of Gaussian weights give 2.12 to 2.14
    assert found[0] == pytest.approx(2.13, abs=0.04)
    assert random_matrix.windowed_hill(square[:100]) is None
