import numpy as np
import pandas as pd
import pytest
from surfaces import read

from scalespec.analysis.laws import FitStatus, fit_learning_rate
from scalespec.analysis.laws.learning_rate import best_rate, cells, slopes

STEPLAW = {"n": "N", "d": "D", "batch": "bs", "lr": "lr", "loss": "smooth loss"}


@pytest.fixture(scope="module")
def steplaw(shared):
    return cells(read(shared, "steplaw_dense.csv"), **STEPLAW, ceiling=4.0)


def synthetic(noise: float = 0.0) -> pd.DataFrame:
    """lr* = 100·N^−.7·D^.3·(B/B*)^.5 up to B* = 1e-4·D^.6, and flat above."""
    rng = np.random.default_rng(0)
    rows = []
    for n in (1e8, 4e8, 1.6e9):
        for d in (1e9, 4e9, 1.6e10):
            knee = 1e-3 * d**0.5
            for batch in knee * 2.0 ** np.arange(-3, 4):
                best = 100 * n**-0.7 * d**0.3 * min(batch / knee, 1) ** 0.5
                for lr in best * 2.0 ** np.arange(-3, 4) * 1.1:
                    loss = 3 + 0.02 * np.log(lr / best) ** 2 + 0.01 * np.log(batch / knee) ** 2
                    rows.append((n, d, batch, lr, loss + noise * rng.standard_normal()))
    return pd.DataFrame(rows, columns=["N", "D", "bs", "lr", "smooth loss"])


def test_step_law_slopes_below_and_above_the_best_batch(steplaw):
    table = slopes(steplaw)
    assert len(table) == 17
    assert table["slope_below"].median() == pytest.approx(0.76, abs=0.02)
    assert table["slope_all"].median() == pytest.approx(0.25, abs=0.02)
    assert table["slope_above"].median() == pytest.approx(0.0, abs=0.05)


def test_step_law_exponents(steplaw):
    """Published medians: lr ∝ N^−.712 D^.307, B ∝ D^.571; each inside the interval of this data, or near its edge."""
    rate, batch = fit_learning_rate(steplaw)
    assert rate.params["n"].lo < -0.712 < rate.params["n"].hi
    assert rate["d"] == pytest.approx(0.307, abs=0.1)
    assert batch.params["d"].lo < 0.571 < batch.params["d"].hi
    assert rate.params["above"].lo < 0 < rate.params["above"].hi + 0.02
    assert rate.params["below"].lo > 0.5


def test_a_known_kink_is_recovered():
    rate, batch = fit_learning_rate(cells(synthetic(), **STEPLAW))
    expected = {"n": -0.7, "d": 0.3, "below": 0.5, "above": 0.0}
    for name, value in expected.items():
        assert rate[name] == pytest.approx(value, abs=1e-6)
    assert rate["k"] == pytest.approx(100, rel=1e-3)
    assert (batch["n"], batch["d"]) == pytest.approx((0, 0.5), abs=1e-6)
    assert rate.clean


def test_intervals_hold_the_kink_under_noise():
    rate, _ = fit_learning_rate(cells(synthetic(0.002), **STEPLAW))
    for name, value in {"n": -0.7, "below": 0.5, "above": 0.0}.items():
        assert rate.params[name].lo < value < rate.params[name].hi


@pytest.mark.parametrize(
    ("losses", "status"),
    [
        ([1, 2, 3, 4, 5], "smallest"),
        ([5, 4, 3, 2, 1], "largest"),
        ([3, 2, 1, 2, 3], "interior"),
        ([3, 2, 1, 2], "too_few"),
    ],
)
def test_an_optimum_at_the_end_of_the_grid_is_flagged(losses, status):
    lr = 1e-4 * 2.0 ** np.arange(len(losses))
    rate, _, found = best_rate(lr, np.array(losses, float))
    assert found == status
    assert np.isfinite(rate) == (status == "interior")


def test_the_vertex_is_exact_for_a_parabola():
    lr = np.geomspace(1e-4, 1e-2, 9)
    rate, loss, _ = best_rate(lr, 2 + 0.1 * np.log(lr / 7e-4) ** 2)
    assert (rate, loss) == pytest.approx((7e-4, 2.0))


def test_too_few_cells_have_no_law():
    rate, batch = fit_learning_rate(cells(synthetic()[lambda t: t["N"] == 1e8], **STEPLAW))
    assert rate.status == batch.status == {FitStatus.TOO_FEW_POINTS}
    assert rate.params == {}


def test_a_single_size_does_not_pretend_to_an_exponent_of_size():
    table = synthetic()
    many = pd.concat([table[table["N"] == 1e8].assign(D=lambda t, k=k: t["D"] * k) for k in (1, 2)])
    rate, _ = fit_learning_rate(cells(many, **STEPLAW))
    assert not rate.clean


def test_a_batch_at_the_end_of_the_grid_is_no_optimum():
    table = synthetic()
    knee = 1e-3 * table["D"] ** 0.5
    found = cells(table[table["bs"] <= knee * 1.01], **STEPLAW)
    assert not any(cell.bracketed for cell in found)
    rate, batch = fit_learning_rate(found)
    assert batch.status == {FitStatus.TOO_FEW_POINTS}
    assert rate["below"] == pytest.approx(0.5, abs=1e-6)
    assert "above" not in rate.params


def test_one_batch_still_gives_the_rate_against_size_and_data():
    table = synthetic()
    rate, _ = fit_learning_rate(cells(table.groupby(["N", "D"]).head(7), **STEPLAW))
    assert rate["n"] == pytest.approx(-0.7, abs=1e-6)
    assert set(rate.params) == {"k", "n", "d"}
