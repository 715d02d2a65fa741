import numpy as np
import pytest
from surfaces import EPOCH, grid_runs

from scalespec.analysis.laws import Table, backtest, backtests, chinchilla_loss, rolling_origin
from scalespec.analysis.laws.backtest import baselines, largest, largest_budgets


@pytest.fixture(scope="module")
def grid():
    table = grid_runs(noise=0.005)
    return Table.of(
        table["params_matmul"],
        table["samples"],
        table["flops_train"],
        table["val_loss"],
        table["family_key"],
        table["run_key"],
    )


def test_epoch_losses_extrapolate_and_coefficients_do_not(epoch_240):
    """Hold out the top fifth of compute: 48 points, up to 23× beyond."""
    table = Table.of(epoch_240["n"], epoch_240["d"], epoch_240["c"], epoch_240["loss"])
    test = backtest(table, largest_budgets(table.c), "top fifth", resamples=200)
    scores = test.scores()
    assert (scores["held_out"], scores["fitted"]) == (48, 192)
    assert scores["ratio"] == pytest.approx(23, abs=0.5)
    assert scores["in_sample_mape"] == pytest.approx(0.0040, abs=2e-4)
    assert scores["mape"] == pytest.approx(0.0105, abs=5e-4)
    assert scores["bias"] == pytest.approx(0.003, abs=5e-4)
    assert test.law["beta"] == pytest.approx(0.436, abs=2e-3)
    assert test.law["B"] == pytest.approx(8650, rel=0.02)
    assert scores["mape"] < min(scores["baselines"].values())


def test_a_true_law_beats_the_baselines_and_its_intervals_hold(grid):
    for test in backtests(grid, resamples=200):
        scores = test.scores()
        assert scores["mape"] < min(scores["baselines"].values()), test.name
        assert scores["coverage"] > 0.75, test.name
        assert abs(scores["bias"]) < 0.01


def test_held_out_runs_do_not_touch_the_fit(grid):
    mask = largest_budgets(grid.c)
    spoiled = Table(grid.n, grid.d, grid.c, np.where(mask, 7.0, grid.loss), grid.families, grid.keys)
    first, second = (backtest(t, mask, "x", resamples=0) for t in (grid, spoiled))
    assert first.law["alpha"] == second.law["alpha"]
    assert (first.predicted == second.predicted).all()
    assert second.error.max() < 0


def test_the_sign_of_the_error_is_kept():
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
    loss = chinchilla_loss(EPOCH, n, d)
    table = Table.of(n, d, 6 * n * d, np.where(n > 5e8, loss * 1.1, loss))
    test = backtest(table, largest(table.n), "largest N", resamples=0)
    assert (test.error < -0.05).all()


def test_rolling_origin_always_predicts_the_same_runs_from_more(grid):
    tests = rolling_origin(grid, resamples=60)
    assert len(tests) >= 3
    assert len({t.keys for t in tests}) == 1
    fitted, ratios = [t.law.n_used for t in tests], [t.ratio for t in tests]
    assert fitted == sorted(set(fitted))
    assert ratios == sorted(ratios, reverse=True)


def test_what_cannot_be_fitted_is_no_backtest(grid):
    everything = np.ones(len(grid.n), dtype=bool)
    assert backtest(grid, everything, "all") is None
    assert backtest(grid, ~everything, "none") is None
    few = np.arange(len(grid.n)) >= 4
    assert backtest(grid, few, "too few left") is None
    assert backtests(grid[few & False]) == []
    assert rolling_origin(grid[np.arange(len(grid.n)) < 5]) == []


def test_baselines_need_no_law():
    train = Table.of([1e6, 1e7, 1e8], [1e9, 1e9, 1e9], [6e15, 6e16, 6e17], [4.0, 3.0, 2.5])
    test = Table.of([2e8], [1e9], [1.2e18], [2.4])
    found = baselines(train, test)
    assert found["last value"][0] == 2.5
    assert found["nearest run"][0] == 2.5
    assert found["power law without floor"][0] < 2.5


def test_intervals_of_an_ill_determined_law_stay_on_its_valley():
    """Six families whose exponents are open: parameters widened together would predict losses several times too large."""
    table = grid_runs(3, 4, 2, noise=0.02)
    few = Table.of(
        table["params_matmul"],
        table["samples"],
        table["flops_train"],
        table["val_loss"],
        table["family_key"],
    )
    for test in backtests(few):
        assert (test.hi < 1.6 * test.actual).all(), test.name
        assert (test.lo > 0.6 * test.actual).all(), test.name
