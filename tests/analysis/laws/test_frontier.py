import numpy as np
import pytest
from surfaces import EPOCH, grid_runs

from scalespec.analysis.laws import FitStatus, fit_frontier, verdict
from scalespec.analysis.laws.frontier import budgets, smoothed_profiles, trace

A = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
GAMMA = EPOCH["alpha"] * EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])


def columns(table):
    return tuple(table[name].to_numpy(dtype=float) for name in ("params_matmul", "flops_train", "val_loss"))


def test_exact_losses_give_the_exponents_of_the_surface():
    loss_law, size_law = fit_frontier(*columns(grid_runs(seeds=1, noise=0)), resamples=0)
    assert loss_law["gamma"] == pytest.approx(GAMMA, abs=0.005)
    assert loss_law["E"] == pytest.approx(EPOCH["E"], abs=0.05)
    assert size_law["a"] == pytest.approx(A, abs=0.01)


def test_the_frontier_lies_on_the_surface():
    n, c, loss = columns(grid_runs(seeds=1, noise=0))
    points = fit_frontier(n, c, loss, resamples=0)[0].diagnostics["points"]
    size, budget = np.array(points["n"]), np.array(points["c"]) / 6.3 * 6
    ratio = (EPOCH["alpha"] * EPOCH["A"] / (EPOCH["beta"] * EPOCH["B"])) ** (1 / (EPOCH["alpha"] + EPOCH["beta"]))
    best = ratio * (budget / 6) ** A
    np.testing.assert_allclose(size, best, rtol=0.03)
    at_best = EPOCH["E"] + EPOCH["A"] * best ** -EPOCH["alpha"] + EPOCH["B"] * (budget / 6 / best) ** -EPOCH["beta"]
    np.testing.assert_allclose(points["loss"], at_best, rtol=1e-3)


def test_seeds_are_averaged_before_the_minimum_is_taken():
    """The minimum over single noisy runs lies several percent below the truth; the frontier does not."""
    n, c, loss = columns(grid_runs(seeds=40, noise=0.03))
    clean = columns(grid_runs(seeds=1, noise=0))
    at = budgets(n, c)
    noisy, truth = trace(n, c, loss, at), trace(*clean, at)
    both = np.isfinite(noisy.loss[0]) & np.isfinite(truth.loss[0])
    bias = noisy.loss[0, both] / truth.loss[0, both] - 1
    naive = min(loss[(n == n.min()) & (c == c.min())]) / clean[2][(clean[0] == n.min()) & (clean[1] == c.min())] - 1
    assert np.abs(bias).max() < 0.012
    assert naive < -0.04


def test_an_optimum_at_the_edge_is_no_frontier_and_the_verdict_says_what_to_add():
    table = grid_runs()
    n, c, loss = columns(table)
    steep = 1.0 + (table["samples"].to_numpy(dtype=float) / 1e9) ** -0.7  # more data always wins: the smallest model
    law, size = fit_frontier(n, c, steep * loss / loss)
    assert law.status == size.status == {FitStatus.TOO_FEW_POINTS}
    assert set(law.diagnostics["not_bracketed"]) == {"smallest"}
    assert "smaller sizes" in verdict(law)


def test_two_sizes_have_no_frontier():
    table = grid_runs(widths=2)
    law, _ = fit_frontier(*columns(table))
    assert law.status == {FitStatus.TOO_FEW_POINTS}
    assert "nowhere in compute were three sizes trained" in verdict(law)


def test_intervals_come_from_families_and_are_reproducible():
    table = grid_runs()
    first, again = (fit_frontier(*columns(table), families=table["family_key"], seed=5) for _ in range(2))
    assert first[0].to_json() == again[0].to_json()
    assert "18 families" in first[0].resampling
    for law, name in zip(first, ("gamma", "a"), strict=True):
        assert law.params[name].lo < law.params[name].value < law.params[name].hi
    points = first[0].diagnostics["points"]
    assert all(lo < n < hi for lo, n, hi in zip(points["n_lo"], points["n"], points["n_hi"], strict=True))


def test_smoothed_profiles_show_every_budget_of_the_frontier():
    n, c, loss = columns(grid_runs())
    found = smoothed_profiles(n, c, loss)
    points = fit_frontier(n, c, loss, resamples=0)[0].diagnostics["points"]
    assert [p.n_opt for p in found if p.status == "interior"] == pytest.approx(points["n"])


def test_nothing_is_read_outside_the_range_of_a_size():
    n, c, loss = columns(grid_runs())
    for profile in smoothed_profiles(n, c, loss):
        for size in profile.n:
            trained = c[n == size]
            assert trained.min() * 0.999 <= profile.c <= trained.max() * 1.001
