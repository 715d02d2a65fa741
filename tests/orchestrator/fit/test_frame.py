"""`scalespec.fit`: a table of anyone's never raises for its numbers, and says in one line what is not there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from user_tables import TRUTH, surface

from scalespec.analysis.laws import FitStatus, fit_chinchilla
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.fit.frame import fit


def said(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        fit(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("two", [("N", "D", None), ("N", None, "C"), (None, "D", "C"), ("N", "D", "C")])
def test_any_two_of_three_give_the_same_law(two):
    law = fit(surface(), *two, loss="loss", resamples=60)
    for name, value in TRUTH.items():
        assert law[name] == pytest.approx(value, rel=1e-3), name
    assert law.form == "chinchilla"
    assert law.target == "loss"
    assert law.n_column == (two[0] or "N = C / 6D")


def test_it_is_the_fit_of_the_same_columns():
    frame = surface()
    mine = fit(frame, n="N", d="D", loss="loss", family="seed", resamples=60)
    its = fit_chinchilla(frame["N"], frame["D"], frame["loss"], families=frame["seed"], resamples=60)
    assert mine.params == its.params
    assert mine.resampling == its.resampling


def test_rows_without_numbers_are_left_out_and_named():
    frame = surface().astype({"N": object}).set_axis([f"run{i}" for i in range(36)])
    frame.loc["run3", "loss"] = np.nan
    frame.loc["run5", "N"] = "seven"
    frame.loc["run7", "D"] = -1.0
    law = fit(frame, n="N", d="D", loss="loss", resamples=60)
    assert [(one.key, one.reason.split()[0]) for one in law.excluded] == [
        ("run3", "loss"),
        ("run5", "N"),
        ("run7", "D"),
    ]
    assert (law.n_points, law.n_used) == (36, 33)
    assert law["alpha"] == pytest.approx(TRUTH["alpha"], rel=1e-3)


@pytest.mark.parametrize("form", ["auto", "kaplan", "one-exponent", "isoflop"])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_rows_are_a_status(form, rows):
    law = fit(surface().head(rows), n="N", d="D", loss="loss", form=form)
    assert law.status == {FitStatus.TOO_FEW_POINTS}
    assert not law.params
    assert law.verdict


@pytest.mark.parametrize("bad", [0.0, -3.0, np.inf])
def test_a_column_of_impossible_numbers_is_a_status(bad):
    law = fit(surface().assign(loss=bad), n="N", d="D", loss="loss")
    assert law.status == {FitStatus.TOO_FEW_POINTS}
    assert len(law.excluded) == 36


def test_repeated_indices_do_no_harm():
    frame = pd.concat([surface(), surface()])
    assert fit(frame, n="N", d="D", loss="loss", resamples=0).n_used == 72


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": "params", "d": "D", "loss": "loss"}, "n params: no such column; the table has: N, D, C, loss, seed"),
        ({"n": "N", "d": "D", "loss": "los"}, "loss los: no such column"),
        ({"n": "N", "d": "D", "loss": "loss", "family": "trunk"}, "family trunk: no such column"),
        ({"n": "N", "loss": "loss"}, "give two of n, d and c; the third follows from C = 6ND"),
        ({"n": "N", "d": "D", "loss": "loss", "form": "power"}, "form power: give one of n, d and c"),
        ({"n": "N", "d": "D", "loss": "loss", "form": "cubic"}, "form cubic: not one of chinchilla"),
        ({"n": "N", "d": "D", "loss": "loss", "unit": "nat"}, "unit nat: not one of nats, bits, bpb"),
        ({"n": "N", "d": "D", "loss": "loss", "form": "data-constrained"}, "give unique, the column"),
        ({"n": "N", "d": "D", "loss": "loss", "form": "isoflop", "delta": 0.1}, "delta: the form isoflop has no"),
    ],
)
def test_what_is_not_there_is_one_line(options, words):
    assert words in said(surface(), **options)


def test_a_column_of_words_is_one_line():
    assert said(surface().assign(loss="low"), n="N", d="D", loss="loss") == "loss loss: no numbers in this column (first value: 'low')"  # fmt: skip


def test_the_picture_has_the_user_s_words():
    law = fit(surface(), n="N", c="C", loss="loss", unit="bpb", resamples=0)
    axes = law.plot().axes
    assert axes[0].get_ylabel() == "loss (bpb)"
    assert {axis.get_xlabel() for axis in axes} >= {"N", "D = C / 6N"}
