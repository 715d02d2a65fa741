"""A new form is a record: with it in the list, everything that treats laws alike knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.fitted import FittedLaw
from scalespec.analysis.laws import Table, backtest, form_of, registry, verdict
from scalespec.analysis.laws.backtest import largest_budgets
from scalespec.analysis.laws.form import Form, Parameter
from scalespec.analysis.laws.law import Array
from scalespec.analysis.laws.problem import Columns, Problem, centred, sum_of_powers
from scalespec.analysis.plots.laws import coefficient_drift_figure
from scalespec.analysis.plots.style import to_svg

TRUTH = {"E": 1.5, "K": 300.0, "kappa": 0.13}


def loss_of(params: Mapping[str, Any], n: Any, d: Any) -> Any:
    """E + K·(N²·D)^−κ/3 + 1/D^½, so that a budget has a best size inside."""
    return params["E"] + params["K"] * (n**2 * d) ** (-params["kappa"] / 3) + 1e3 * d**-0.5


def problem(columns: Columns, loss: Array) -> Problem:
    x, mean = centred(columns["n"] ** 2 * columns["d"])
    powers = np.zeros((1, len(loss), 1))
    powers[0, :, 0] = -x / 3

    def params(theta: Array) -> dict[str, Array]:
        kappa = theta[:, 2]
        return {"E": theta[:, 1] * loss.min(), "K": np.exp(theta[:, 0] + kappa * mean / 3), "kappa": kappa}

    return sum_of_powers(powers, loss, ("K", "E", "kappa"), 1, params, {"n": 3, "d": 3})


TOY = Form(
    name="toy_form",
    title="Toy",
    equation="E + K·(N²·D)^−κ/3",
    source="https://example.org",
    variables=("n", "d"),
    parameters={
        "E": Parameter("E", "the floor", "loss"),
        "K": Parameter("K", "the rest", "loss", decades=True),
        "kappa": Parameter("κ", "it falls with κ"),
    },
    exponents=("kappa",),
    problem=problem,
    loss=loss_of,
    slopes={"n": "kappa"},
    cards=("kappa", "E"),
)


@pytest.fixture
def table(monkeypatch) -> pd.DataFrame:
    monkeypatch.setattr(registry, "FORMS", {**registry.FORMS, TOY.name: TOY})
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e12, 1e14, 5)))
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(len(n)))
    return pd.DataFrame({"n": n, "d": d, "c": 6 * n * d, "loss": loss_of(TRUTH, n, d) * noise})


@pytest.fixture
def law(table) -> FittedLaw:
    fitted = registry.fit_form(form_of("toy-form"), {"n": table["n"], "d": table["d"]}, table["loss"], resamples=60)
    return FittedLaw.of(fitted, table)


def test_it_is_fitted_and_its_amplitude_has_an_interval_in_decades(law):
    assert law.form == "toy_form"
    assert law["kappa"] == pytest.approx(TRUTH["kappa"], rel=0.05)
    assert 0 < law.params["K"].lo < law["K"] < law.params["K"].hi


def test_verdict_influence_and_pictures_use_its_symbols(law):
    assert "κ = 0.1" in verdict(law)
    assert all(set(moved) == {"kappa"} for moved in law.diagnostics["influence"].values())
    assert "κ" in to_svg(law.plot())


def test_a_best_size_follows_by_search(law):
    best = law.best(1e22)
    assert 6 * best.n.value * best.d.value == pytest.approx(1e22)
    for factor in (0.7, 1.4):
        assert law.loss(best.n.value * factor, best.d.value / factor) > best.loss.value
    assert best.n.lo <= best.n.value <= best.n.hi


def test_it_is_held_out_like_the_others(table):
    points = Table.of(table["n"], table["d"], table["c"], table["loss"])
    found = backtest(points, largest_budgets(points.c), "the largest", form="toy_form", resamples=60)
    assert found.scores()["mape"] < 0.005
    assert "κ" in to_svg(coefficient_drift_figure([found]))
    with pytest.raises(ValueError, match="no law of N and D"):
        backtest(points, largest_budgets(points.c), "the largest", form="isoflop")


def test_an_unknown_form_lists_those_that_can_be_fitted(table):
    with pytest.raises(ValueError, match=r"sigmoid: not one of chinchilla, one_exponent, kaplan.*isoflop, toy_form$"):
        form_of("sigmoid")


def test_variables_that_are_missing_are_named(table):
    with pytest.raises(ValueError, match="toy_form: needs d"):
        registry.fit_form(TOY, {"n": table["n"]}, table["loss"])
    with pytest.raises(ValueError, match="power: needs one of n, d, c"):
        registry.fit_form(form_of("power"), {"n": table["n"], "d": table["d"]}, table["loss"])
