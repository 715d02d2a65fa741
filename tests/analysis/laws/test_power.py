import numpy as np
import pandas as pd
import pytest
from surfaces import read

from scalespec.analysis.laws import FitStatus, fit_one_exponent, fit_power, one_exponent_loss, power_loss

X = np.geomspace(1e6, 1e10, 12)


def test_kaplans_law_of_size_is_recovered():
    law = fit_power(X, (8.8e13 / X) ** 0.076, floor=False, resamples=0)
    assert law["gamma"] == pytest.approx(0.076, rel=1e-9)
    assert law["x_c"] == pytest.approx(8.8e13, rel=1e-6)


@pytest.mark.parametrize("variable", ["n", "d", "c"])
def test_power_with_floor_is_recovered_in_any_variable(variable):
    law = fit_power(X, 1.7 + 300 * X**-0.35, variable=variable, resamples=0)
    assert (law["E"], law["K"], law["gamma"]) == pytest.approx((1.7, 300, 0.35), rel=1e-6)
    assert getattr(law, f"{variable}_column") == variable


def test_a_missing_floor_bends_the_exponent_as_published():
    """True slope −.35 over 3.5 decades, E = .03: a pure power law reads −.30."""
    c = np.geomspace(1, 10**3.5, 12)
    loss = 0.03 + 0.9 * c**-0.35
    assert fit_power(c, loss, variable="c", floor=False, delta=1.0, resamples=0)["gamma"] == pytest.approx(
        0.30, abs=0.006
    )
    assert fit_power(c, loss, variable="c", resamples=0)["gamma"] == pytest.approx(0.35, abs=1e-6)


def test_no_floor_in_the_data_is_a_floor_at_its_bound():
    law = fit_power(X, 300 * X**-0.35, resamples=0)
    assert FitStatus.AT_BOUND in law.status
    assert law["gamma"] == pytest.approx(0.35, abs=1e-3)


def test_losses_that_rise_with_size_are_at_the_bound():
    law = fit_power(X, X**0.1, floor=False, resamples=0)
    assert law.diagnostics["at_bound"] == ["gamma"]


@pytest.mark.parametrize(
    ("dataset", "published"),
    [
        ("c4_original", (113.693, 189.516, 0.24247, 1.50826)),
        ("rpj", (166.211, 366.687, 0.27285, 1.83665)),
        ("rw_original", (125.096, 246.207, 0.25439, 1.73446)),
    ],
)
def test_gadre_parameters(shared, dataset, published):
    law = _gadre(shared, dataset)[0]
    found = law["A"], law["B"], law["eta"], law["E"]
    assert found == pytest.approx(published, rel=1e-4)


def test_gadre_extrapolation_errors(shared):
    law, rest = _gadre(shared, "rpj")
    values = {name: p.value for name, p in law.params.items()}
    error = one_exponent_loss(values, rest["N"], rest["D"]) / rest["loss_c4_val"] - 1
    by_name = dict(zip(rest["name"], 100 * error.abs(), strict=True))
    assert by_name["rpj-open_lm_1b-32.0"] == pytest.approx(0.7103, abs=1e-4)
    assert by_name["rpj-open_lm_7b-1.0"] == pytest.approx(0.7320, abs=1e-4)


def _gadre(shared, dataset):
    """Their five points: the four small models at 20 tokens a parameter, and the smallest at 320."""
    table: pd.DataFrame = read(shared, "gadre_testbed.csv")
    table = table[table["dataset"] == dataset]
    large = table["model"].str.startswith("open_lm")
    smallest = table["model"] == "d=96_l=8_h=4"
    used = table[(~large & (table["cc_mult"] == 1)) | (smallest & (table["cc_mult"] == 16))]
    assert len(used) == 5
    return fit_one_exponent(used["N"], used["D"], used["loss_c4_val"], resamples=0), table[large]


def test_power_loss_without_floor_has_none():
    assert power_loss({"K": 2.0, "gamma": 1.0}, 4.0) == 0.5
