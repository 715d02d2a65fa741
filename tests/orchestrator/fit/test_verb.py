"""`scalespec fit` on anyone's table: what is read, what is refused, and what comes out of an exact surface."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pandas as pd
import pytest
from user_tables import TRUTH, complaint, surface

from scalespec.analysis.laws import FitStatus, data_constrained_loss
from scalespec.analysis.laws.registry import fittable
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.fit.verb import Columns, certify, check_request, draw, in_nats, points, write


def test_an_exact_surface_gives_its_own_law():
    data, said = points(surface(), Columns("loss", "N", "D"))
    law = certify(data, resamples=20)
    assert said == "C = 6ND"
    for name, value in TRUTH.items():
        assert law[name] == pytest.approx(value, rel=1e-3), name
    assert law["a"] == pytest.approx(0.28 / 0.62, rel=1e-3)
    assert (law.n_points, law.n_used) == (36, 36)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns("loss", "N", "D"), "C = 6ND"),
        (Columns("loss", "N", None, "C"), "D = C / 6N"),
        (Columns("loss", None, "D", "C"), "N = C / 6D"),
        (Columns("loss", "N", "D", "C"), "N, D and C as given, C = 1 × 6ND"),
    ],
)
def test_the_third_follows_from_two(columns, words):
    data, said = points(surface(), columns)
    assert said == words
    for name, column in (("n", "N"), ("d", "D"), ("c", "C"), ("loss", "loss")):
        assert data[name].to_numpy() == pytest.approx(surface()[column].to_numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0, "text", None])
@pytest.mark.parametrize("column", ["loss", "N", "D"])
def test_values_that_cannot_be_are_named_with_their_row(bad, column):
    frame = surface().astype({column: object})
    frame.loc[4, column] = bad
    message = complaint(points, frame, Columns("loss", "N", "D"))
    assert f"{column}: row 5 is" in message
    assert "1 such in all" in message
    assert f"--where '{column} > 0'" in message


def test_columns_that_are_not_there_are_named_with_those_that_are():
    message = complaint(points, surface(), Columns("los", "N", "D"))
    assert message == "--loss los: no such column; the table has: N, D, C, loss, seed"


@pytest.mark.parametrize("columns", [Columns("loss"), Columns("loss", n="N"), Columns("loss", c="C")])
def test_two_of_three_are_needed(columns):
    assert complaint(points, surface(), columns) == "give two of --n, --d and --c; the third follows from C = 6ND"


def test_the_highest_losses_can_be_left_out():
    data, _ = points(surface(), Columns("loss", "N", "D"), drop_highest=5)
    assert len(data) == 31
    assert data["loss"].max() < surface()["loss"].nlargest(5).min()


@pytest.mark.parametrize("drop", [31, 1000])
def test_too_few_points_are_refused(drop):
    assert "at least 6 are needed" in complaint(points, surface(), Columns("loss", "N", "D"), drop)


@pytest.mark.parametrize("delta", [-1.0, 0.0, float("nan"), float("inf")])
def test_an_impossible_threshold_is_one_line(delta):
    data, _ = points(surface(), Columns("loss", "N", "D"))

    def fitted() -> None:
        certify(data, delta=delta, resamples=2)

    assert "delta" in complaint(fitted)


def test_an_unknown_form_is_named():
    data, _ = points(surface(), Columns("loss", "N", "D"))
    with pytest.raises(InputError, match="--form sigmoid: not one of"):
        certify(data, form="sigmoid")


@pytest.mark.parametrize("name", ["one-exponent", "one_exponent", "auto"])
def test_a_form_has_one_name_whatever_its_hyphens(name):
    data, _ = points(surface(), Columns("loss", "N", "D"), form=name)
    assert certify(data, form=name, resamples=5).form == ("chinchilla" if name == "auto" else "one_exponent")


def test_a_form_that_only_a_study_has_is_not_fitted_to_a_table():
    message = complaint(points, surface(), Columns("loss", "N", "D"), 0, "n_opt")
    assert message == "--form n_opt: is read from a study, not fitted to a table"


def test_the_law_is_written_as_json(tmp_path):
    data, _ = points(surface(), Columns("loss", "N", "D"))
    law = certify(data, resamples=5)
    write([law], str(tmp_path / "law.json"))
    assert json.loads((tmp_path / "law.json").read_text()) == [law.to_json()]
    assert "--out" in complaint(write, [law], str(tmp_path / "absent" / "law.json"))


# -- the other forms -----------------------------------------------------------------------------------------------------

REPEATED = {**TRUTH, "r_d": 15.4, "r_n": 5.3}
"""With the half-lives of https://arxiv.org/abs/2305.16264."""
FORM_COLUMNS = {
    "chinchilla": Columns("loss", "N", "D"),
    "one_exponent": Columns("loss", "N", "D"),
    "kaplan": Columns("loss", "N", "D"),
    "power": Columns("loss", n="N"),
    "data_constrained": Columns("loss", "N", "D", unique="U"),
    "isoflop": Columns("loss", "N", c="C"),
}


def repeated() -> pd.DataFrame:
    """The law for repeated data, without noise: up to 60 epochs of three amounts of text."""
    n, u, epochs = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 5), [1e8, 1e9, 1e10], [1, 4, 16, 60], indexing="ij")
    )
    return pd.DataFrame({"N": n, "D": u * epochs, "U": u, "loss": data_constrained_loss(REPEATED, n, u * epochs, u)})


def isoflop() -> pd.DataFrame:
    """The law at four budgets of seven sizes each."""
    c, share = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e18, 1e21, 4), np.geomspace(0.1, 10, 7)))
    n = share * 0.6 * (c / 6) ** 0.45
    d = c / (6 * n)
    return pd.DataFrame(
        {"N": n, "C": c, "loss": TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]}
    )


def table_for(form: str) -> pd.DataFrame:
    return {"data_constrained": repeated, "isoflop": isoflop}.get(form, surface)()


@functools.cache
def fitted(form: str, resamples: int = 5):
    data, _ = points(table_for(form), FORM_COLUMNS[form], form=form)
    return certify(data, form=form, resamples=resamples), data


def test_repeated_data_give_their_own_law():
    law, _ = fitted("data_constrained")
    for name in ("E", "alpha", "beta", "r_d"):
        assert law[name] == pytest.approx(REPEATED[name], rel=1e-2), name


def test_isoflop_profiles_give_the_exponent_of_the_best_size():
    law, _ = fitted("isoflop")
    assert law["a"] == pytest.approx(0.28 / 0.62, abs=0.01)


def test_a_power_law_in_one_variable_is_its_slice():
    frame = surface().query("D == D.max()")
    data, said = points(frame, Columns("loss", n="N"), form="power")
    law = certify(data, form="power", resamples=5)
    assert said == ""
    assert law["gamma"] == pytest.approx(TRUTH["alpha"], rel=1e-3)


def test_kaplan_s_form_has_no_floor():
    law, _ = fitted("kaplan")
    assert set(law.params) == {"alpha_n", "alpha_d", "n_c", "d_c"}


@pytest.mark.parametrize(
    ("form", "ending"), [*((form, ".svg") for form in fittable()), ("power", ".png"), ("power", ".pdf")]
)
def test_every_form_has_its_figure(form, ending, tmp_path):
    law, data = fitted(form)
    path = tmp_path / f"law{ending}"
    draw(law, data, FORM_COLUMNS[form], str(path), "bpb")
    start = path.read_bytes()[:200]
    assert {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[ending] in start
    if ending == ".svg":
        assert "loss (bpb)" in path.read_text()
    assert "--plot" in complaint(draw, law, data, FORM_COLUMNS[form], str(tmp_path / "absent" / "a.svg"))


@pytest.mark.parametrize("form", fittable())
def test_a_law_without_parameters_is_drawn_as_such(form, tmp_path):
    frame = table_for(form)
    frame = frame.assign(N=frame["N"].iloc[0]).drop(columns="C", errors="ignore").assign(C=1e18)
    data, _ = points(frame, FORM_COLUMNS[form], form=form)
    law = certify(data, form=form, resamples=5)
    assert FitStatus.TOO_FEW_POINTS in law.status
    assert not law.params
    draw(law, data, FORM_COLUMNS[form], str(tmp_path / "law.png"))
    assert (tmp_path / "law.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("form", "columns", "words"),
    [
        ("power", Columns("loss", "N", "D"), "--form power: give one of --n, --d and --c"),
        ("power", Columns("loss"), "--form power: give one of"),
        ("data-constrained", Columns("loss", "N", "D"), "give --unique"),
        ("chinchilla", Columns("loss", "N", "D", unique="U"), "--unique: only the form data_constrained"),
    ],
)
def test_columns_that_do_not_suit_the_form_are_refused(form, columns, words):
    def read() -> None:
        points(repeated(), columns, form=form)

    assert words in complaint(read)


def test_what_cannot_be_asked_is_said_before_the_fit():
    assert "--unit nat: not one of nats, bits, bpb" in complaint(check_request, "nat", None)
    assert "--plot law.jpg: the name of a figure ends in one of .svg, .png, .pdf" in complaint(
        check_request, None, "law.jpg"
    )
    data, _ = points(isoflop(), FORM_COLUMNS["isoflop"], form="isoflop")

    def fit_with_delta() -> None:
        certify(data, form="isoflop", delta=0.1)

    assert "--delta: the form isoflop has no Huber threshold" in complaint(fit_with_delta)


def test_a_floor_in_bits_is_also_said_in_nats():
    law, _ = fitted("chinchilla")
    assert in_nats(law, None) == in_nats(law, "nats") == ""
    assert in_nats(law, "bits") == f"E in nats per token: {law['E'] * np.log(2):.4g}"
    assert "per byte" in in_nats(law, "bpb")


def test_compute_in_another_unit_is_asked_about():
    frame = surface().assign(C=surface()["C"] / 8.64e19)
    _, said = points(frame, Columns("loss", "N", "D", "C"))
    assert "single units?" in said


@pytest.mark.parametrize("form", ["chinchilla", "power", "isoflop"])
def test_runs_of_one_family_are_resampled_together(form):
    frame = table_for(form)
    frame = frame.assign(trunk=np.arange(len(frame)) % 8)
    columns = dataclasses.replace(FORM_COLUMNS[form], family="trunk")
    data, _ = points(frame, columns, form=form)
    assert "8 families" in certify(data, form=form, resamples=100).resampling
    missing = dataclasses.replace(columns, family="seed of the trunk")

    def read() -> None:
        points(frame, missing, form=form)

    assert complaint(read).startswith("--family seed of the trunk: no such column; the table has: ")
