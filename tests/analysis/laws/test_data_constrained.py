import numpy as np
import pytest

from scalespec.analysis.laws import FitStatus, data_constrained_loss, fit_data_constrained
from scalespec.analysis.laws.data_constrained import effective_data, problem

PUBLISHED = {
    "A": np.exp(6.255414),
    "B": np.exp(7.3049974),
    "E": np.exp(0.6254804),
    "alpha": 0.3526596,
    "beta": 0.3526596,
    "r_d": 15.387756,
    "r_n": 5.309743,
}
"""https://arxiv.org/abs/2305.16264, huggingface/datablations."""
RNG = np.random.default_rng(0)
N, U = 10 ** RNG.uniform(7, 9.5, 60), 10 ** RNG.uniform(7.5, 10, 60)
D = U * 2 ** RNG.uniform(-1, 6, 60)


def test_published_losses():
    assert data_constrained_loss(PUBLISHED, 6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert data_constrained_loss(PUBLISHED, 8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-12)


def test_fresh_data_counts_in_full_and_repeats_saturate():
    assert effective_data(3e9, 5e9, 15.0) == 3e9
    assert effective_data(5e9, 5e9, 15.0) == 5e9
    assert 9.6e9 < effective_data(10e9, 5e9, 15.0) < 10e9
    assert effective_data(1e15, 5e9, 15.0) == pytest.approx(5e9 * 16)


def test_gradient_agrees_with_finite_differences():
    loss = data_constrained_loss(PUBLISHED, N, D, U)
    found = problem({"n": N, "d": D, "unique": U}, loss)
    theta = found.starts[:12]
    jacobian = found.model.derivatives(theta)[1]
    for j in range(7):
        away = np.zeros(7)
        away[j] = 1e-6
        numeric = (found.model.log_loss(theta + away) - found.model.log_loss(theta - away)) / 2e-6
        np.testing.assert_allclose(jacobian[:, j], numeric, rtol=1e-5, atol=1e-6)


def test_exact_losses_give_every_parameter_back():
    law = fit_data_constrained(N, D, U, data_constrained_loss(PUBLISHED, N, D, U), resamples=0, influence=False)
    for name, value in PUBLISHED.items():
        assert law[name] == pytest.approx(value, rel=1e-6)


def test_without_repetition_its_half_life_is_not_claimed():
    fresh = 2 * D
    law = fit_data_constrained(
        N, D, fresh, data_constrained_loss(PUBLISHED, N, D, fresh), resamples=60, influence=False
    )
    assert not law.clean
    assert law.status & {FitStatus.FLAT_BASIN, FitStatus.NOT_CONVERGED, FitStatus.AT_BOUND}
