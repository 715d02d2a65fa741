"""What follows from a law, in any form: the loss, the best size, a forecast that never says more than is known."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from surfaces import EPOCH, grid_runs

from scalespec.analysis.fitted import FittedLaw
from scalespec.analysis.laws import (
    FORMS,
    Law,
    chinchilla_loss,
    fit_chinchilla,
    fit_form,
    fit_isoflop,
    fit_kaplan,
    fit_one_exponent,
    form_of,
    kaplan_loss,
    one_exponent_loss,
    optimum,
    study_laws,
)
from scalespec.analysis.laws.chinchilla import FORM as CHINCHILLA
from scalespec.analysis.laws.form import Cost
from scalespec.analysis.laws.optimum import _search
from scalespec.analysis.plots.pictures import KINDS

N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
NOISE = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))
LAW = FittedLaw.of(fit_chinchilla(N, D, chinchilla_loss(EPOCH, N, D) * NOISE, resamples=60, influence=False))


def test_the_records_are_complete():
    assert next(iter(FORMS)) == "chinchilla"
    for name, form in FORMS.items():
        assert form.name == name
        assert form_of(name.replace("_", "-")) is form
        assert form.picture is None or form.picture in KINDS
        assert set(form.exponents) | set(form.cards) | set(form.slopes.values()) <= set(form.parameters)
        assert form.title
        assert form.equation
        assert form.source.startswith("https://")


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.fittable])
def test_a_law_has_parameters_that_its_record_explains(name):
    """And its loss is that of the solver: ln of it at the used points leaves the residuals."""
    form = FORMS[name]
    variables = {"n": N, "d": D, "c": 6 * N * D, "unique": np.minimum(D, 3e10)}
    if form.one_variable:
        variables = {"c": variables["c"]}
    loss = chinchilla_loss(EPOCH, N, D) * NOISE
    law = fit_form(form, variables, loss, resamples=0)
    assert law.form == name
    assert set(law.params) <= set(form.parameters)
    if law.params and form.loss is not None:
        at = [variables[one] for one in form.variables if one in variables]
        np.testing.assert_allclose(np.log(loss / form.loss(law.values, *at)), law.evidence.residuals, atol=1e-9)


def test_numbers_give_a_number_and_arrays_an_array():
    there = LAW.loss(1e9, 2e10)
    assert isinstance(there, float)
    assert LAW.loss([1e9, 1e10], [2e10, 2e10])[0] == there
    assert isinstance(LAW.forecast(1e9, 2e10).law_lo, float)
    assert LAW.forecast(np.array([1e9, 1e10]), 2e10).hi.shape == (2,)


def test_a_forecast_has_the_law_s_interval_and_claims_nothing_of_a_single_run():
    f = LAW.forecast(n=1e11, d=1e13)
    assert f.law_lo < f.value < f.law_hi
    assert f.law_hi - f.law_lo > LAW.forecast(n=1e9, d=1e11).law_hi - LAW.forecast(n=1e9, d=1e11).law_lo
    assert (f.lo, f.hi) == (-math.inf, math.inf)


def test_without_draws_the_interval_is_infinite_and_never_none():
    bare = FittedLaw.of(Law.from_json(LAW.to_json()))
    f = bare.forecast(n=1e9, d=2e10)
    assert (f.law_lo, f.law_hi) == (-math.inf, math.inf)
    assert f.value == LAW.forecast(n=1e9, d=2e10).value


def test_variables_that_do_not_suit_the_form_are_named():
    with pytest.raises(ValueError, match="give n and d, the variables of chinchilla"):
        LAW.loss(1e9)
    with pytest.raises(ValueError, match="give n and d"):
        LAW.forecast(1e9, 2e10, unique=1e9)


def test_a_law_without_parameters_says_why():
    nothing = FittedLaw.of(fit_chinchilla([1e7], [1e9], [3.0]))
    for ask in (lambda: nothing.loss(1e9, 1e10), lambda: nothing.best(1e20), lambda: nothing.forecast(1e9, 1e10)):
        with pytest.raises(ValueError, match="too_few_points"):
            ask()
    assert "1 usable points" in nothing.verdict


@pytest.mark.parametrize("cost", [Cost(), Cost(1.1, 0.9, 8.0)])
def test_searching_finds_what_the_closed_form_says(cost):
    for params in (EPOCH, {name: np.array([[value], [1.05 * value]]) for name, value in EPOCH.items()}):
        found, exact = _search(CHINCHILLA, params, 1e22, cost), CHINCHILLA.best(params, 1e22, cost)
        for name in ("n", "d"):
            np.testing.assert_allclose(found[name], exact[name], rtol=1e-6)
            assert np.shape(found[name]) == np.shape(exact[name])


def test_kaplan_s_law_has_the_published_growth_of_the_best_size():
    """Minimising (Nc/N)^r + Dc/D with D = C/6N gives N ∝ C^(1/(1+r)), r = α_N/α_D."""
    truth = {"alpha_n": 0.076, "alpha_d": 0.103, "n_c": 6.4e13, "d_c": 1.8e13}
    law = fit_kaplan(N, D, kaplan_loss(truth, N, D), resamples=0)
    low, high = (optimum(law, c)["n"].value for c in (1e20, 1e24))
    assert np.log(high / low) / np.log(1e4) == pytest.approx(1 / (1 + 0.076 / 0.103), rel=1e-4)


def test_one_exponent_s_best_size_is_the_lowest_point_of_its_budget():
    truth = {"E": 1.8, "A": 120.0, "B": 200.0, "eta": 0.25}
    law = FittedLaw.of(fit_one_exponent(N, D, one_exponent_loss(truth, N, D), resamples=0))
    best = law.best(1e22)
    assert best.n.value * best.d.value * 6 == pytest.approx(1e22)
    for factor in (0.8, 1.25):
        assert law.loss(best.n.value * factor, best.d.value / factor) > best.loss.value


def test_a_law_of_the_best_size_alone_gives_that():
    n = np.tile(np.geomspace(1e7, 1e9, 9), 4)
    c = np.repeat(np.geomspace(1e17, 1e20, 4), 9)
    law = FittedLaw.of(fit_isoflop(n, c, chinchilla_loss(EPOCH, n, c / 6 / n), noise=1e-4, resamples=60)[0])
    best = law.best(1e19)
    assert best["n"].value == law["G"] * 1e19 ** law["a"]
    assert math.isnan(best.loss.value)
    with pytest.raises(ValueError, match="is no law of the loss"):
        law.loss(1e8)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("grid", [(2, 3, 3), (3, 2, 2), (3, 3, 1), (4, 2, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_a_tiny_table_prints_no_warnings(grid, noise):
    """Exponents at their bounds, draws without a best size: that is for the status and the interval to say."""
    for law in study_laws(grid_runs(*grid, noise=noise), resamples=60):
        fitted = FittedLaw.of(law)
        assert fitted.verdict
        if law.form == "chinchilla" and law.params:
            with contextlib.suppress(ValueError):  # no best size follows from it
                assert all(np.isfinite(fitted.best(1e21)[name].value) for name in ("n", "d", "loss"))
            assert fitted.forecast(1e10, 1e11).law_lo <= fitted.forecast(1e10, 1e11).law_hi
