import numpy as np
import pytest

from scalespec.analysis.laws import fit_kaplan, kaplan_loss

PUBLISHED = {"alpha_n": 0.076, "alpha_d": 0.103, "n_c": 6.4e13, "d_c": 1.8e13}
RNG = np.random.default_rng(0)
N, D = 10 ** RNG.uniform(6, 9, 40), 10 ** RNG.uniform(8, 10.5, 40)


def test_exact_losses_give_kaplans_constants_back():
    law = fit_kaplan(N, D, kaplan_loss(PUBLISHED, N, D), resamples=0)
    for name, value in PUBLISHED.items():
        assert law[name] == pytest.approx(value, rel=1e-6)


def test_the_joint_law_has_kaplans_limits():
    assert kaplan_loss(PUBLISHED, 1e8, 1e30) == pytest.approx((6.4e13 / 1e8) ** 0.076, rel=1e-6)
    assert kaplan_loss(PUBLISHED, 1e60, 1e9) == pytest.approx((1.8e13 / 1e9) ** 0.103, rel=1e-6)


def test_intervals_of_noisy_losses_hold_the_exponents():
    noisy = kaplan_loss(PUBLISHED, N, D) * np.exp(0.01 * np.random.default_rng(1).standard_normal(40))
    law = fit_kaplan(N, D, noisy, delta=0.01, resamples=200)
    for name in ("alpha_n", "alpha_d"):
        assert law.params[name].lo < PUBLISHED[name] < law.params[name].hi
