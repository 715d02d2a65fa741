"""Columns of one spectrum from their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from scalespec.analysis.spectral.esd import WW, layer, spectrum
from scalespec.analysis.spectral.metrics import (
    entropy,
    fit_columns,
    log_alpha_norm,
    matrix_rank,
    scale_metrics,
    tail_size,
    warning,
)


def test_scale_metrics_from_the_matrix_itself():
    weight = np.random.default_rng(0).standard_normal((60, 40))
    found = scale_metrics(spectrum(layer(weight, "dense", WW)))
    frobenius, operator = np.linalg.norm(weight), np.linalg.norm(weight, 2)
    assert found["norm"] == pytest.approx(frobenius**2)
    assert found["log_norm"] == pytest.approx(2 * np.log10(frobenius))
    assert found["spectral_norm"] == found["lambda_max"] == pytest.approx(operator**2)
    assert found["log_spectral_norm"] == pytest.approx(2 * np.log10(operator))
    assert found["stable_rank"] == pytest.approx((frobenius / operator) ** 2)
    assert found["sv_max"] == pytest.approx(operator)
    assert found["matrix_rank"] == found["num_evals"] == 40
    assert found["rank_loss"] == found["weak_rank_loss"] == 0


def test_ranks_of_a_deficient_matrix():
    rng = np.random.default_rng(1)
    found = scale_metrics(spectrum(layer(rng.standard_normal((60, 10)) @ rng.standard_normal((10, 40)), "dense", WW)))
    assert found["matrix_rank"] == 10
    assert found["rank_loss"] == found["weak_rank_loss"] == 30


def test_entropy_of_equal_values_is_one_and_of_rank_one_is_weightwatchers_nonsense():
    assert entropy(np.ones(50), 50) == pytest.approx(1, abs=1e-6)
    single = np.r_[np.zeros(383), 1.0]
    assert matrix_rank(single, 384) == 1
    # 383 zeros count with p = 1e-10, divided by ln(1 + 1e-10)
    assert entropy(single, 1) > 400


def test_log_alpha_norm_agrees_with_the_sum_and_does_not_overflow():
    values = np.random.default_rng(2).exponential(3, 100)
    values.sort()
    assert log_alpha_norm(values, 3.3) == pytest.approx(np.log10(np.sum(values**3.3)))
    assert log_alpha_norm(values * 1e9, 60.0) == pytest.approx(log_alpha_norm(values, 60.0) + 540)


def test_tail_size_counts_from_xmin_on():
    assert tail_size(np.array([1.0, 2.0, 2.0, 3.0]), 2.0) == 3


@pytest.mark.parametrize(("alpha", "label"), [(1.9, "over-trained"), (2.0, ""), (6.0, ""), (6.1, "under-trained")])
def test_warning_is_weightwatchers_word(alpha, label):
    assert warning(alpha) == label


def test_fit_columns_are_those_of_the_profile():
    assert fit_columns(WW)["alpha"] == "alpha"
    assert fit_columns("native")["num_pl_spikes"] == "num_pl_spikes_ks2"
