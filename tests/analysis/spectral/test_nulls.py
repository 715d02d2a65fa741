"""The law of the drawn spectra, published medians, and the cache under faults."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scalespec.analysis.spectral import nulls
from scalespec.analysis.spectral.nulls import draw, null, rounded, wishart_eigenvalues


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALESPEC_CACHE", str(tmp_path / "deep" / "cache"))
    monkeypatch.setattr(nulls, "DRAWS", 6)
    nulls._null.cache_clear()
    yield tmp_path / "deep" / "cache"
    nulls._null.cache_clear()


@pytest.mark.parametrize(("N", "M"), [(30, 30), (80, 20)])
def test_the_factor_has_the_law_of_a_gaussian_matrix(N, M):
    rng = np.random.default_rng(0)
    drawn = wishart_eigenvalues(N, M, 1500, rng)
    plain = np.array([np.linalg.eigvalsh(w.T @ w) for w in rng.standard_normal((1500, N, M))])
    for at in (0, M // 2, M - 1):
        assert stats.ks_2samp(drawn[:, at], plain[:, at]).pvalue > 1e-3
    # E tr WᵀW = NM, E tr (WᵀW)² = NM(N + M + 1)
    assert drawn.sum(axis=1).mean() == pytest.approx(N * M, rel=0.02)
    assert (drawn**2).sum(axis=1).mean() == pytest.approx(N * M * (N + M + 1), rel=0.03)


def test_a_single_column_is_chi_squared():
    rng = np.random.default_rng(1)
    values = wishart_eigenvalues(7, 1, 2000, rng)[:, 0]
    assert stats.kstest(values, stats.chi2(7).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("N", "M", "alpha", "hill"), [(384, 384, 7.0, 2.13), (8192, 256, 22.3, 7.91)])
def test_medians_of_random_matrices_are_those_measured_with_weightwatcher(N, M, alpha, hill):
    """From twenty Gaussian matrices a shape, WeightWatcher's own fit; the spread of alpha between draws is tenfold."""
    table = draw(N, M, draws=60)
    assert table.quantile("alpha", 0.25) < alpha < table.quantile("alpha", 0.75)
    assert table.hill.mean() == pytest.approx(hill, abs=0.03)
    assert 0.09 < table.quantile("D", 0.05) < 0.12


def test_the_scale_of_the_layer_enters_through_the_cut_alone():
    assert rounded(3e-5) == 0.0
    assert rounded(1.04e-2) == pytest.approx(1e-2)
    whole, cut = draw(60, 60, draws=20), draw(60, 60, draws=20, cut=0.1)
    np.testing.assert_array_equal(whole.spectrum, cut.spectrum)
    assert cut.hill.mean() > whole.hill.mean()


def test_pooled_matrices_have_more_values():
    assert len(draw(16, 8, 9, draws=3).spectrum) == 72


def test_quantiles_and_z_are_those_of_the_draws():
    table = draw(100, 50, draws=80)
    assert table.quantile("hill", 0.5) == pytest.approx(np.median(table.hill))
    assert table.z("hill", float(np.exp(np.log(table.hill).mean()))) == pytest.approx(0, abs=1e-9)
    assert np.isnan(table.z("hill", 0.0))


def test_a_table_is_stored_and_read_back_the_same(cache):
    first = null(40, 20)
    nulls._null.cache_clear()
    (file,) = cache.glob("*.npz")
    again = null(40, 20)
    np.testing.assert_array_equal(first.D, again.D)
    assert file.stat().st_mtime_ns == next(cache.glob("*.npz")).stat().st_mtime_ns
    assert not list(cache.glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"\x80\x04."])
def test_a_damaged_table_is_drawn_again(cache, damage):
    wanted = null(40, 20).alpha
    (file,) = cache.glob("*.npz")
    file.write_bytes(damage)
    nulls._null.cache_clear()
    np.testing.assert_array_equal(null(40, 20).alpha, wanted)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALESPEC_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(nulls, "DRAWS", 3)
    nulls._null.cache_clear()
    assert len(null(20, 10).D) == 3
    nulls._null.cache_clear()
