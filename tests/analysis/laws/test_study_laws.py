import json

import numpy as np
import pandas as pd
import pytest
from surfaces import EPOCH, grid_runs

from scalespec.analysis.laws import FitStatus, Law, study_laws
from scalespec.analysis.laws.study import as_runs, extra_axes

NAMES = ["chinchilla", "frontier", "n_opt", "loss_of_n", "loss_of_d"]


def test_a_study_gives_five_laws_that_hold_the_truth():
    laws = {law.id: law for law in study_laws(grid_runs(noise=0.005, seed=1))}
    assert list(laws) == NAMES
    chinchilla = laws["chinchilla"]
    assert chinchilla.clean
    for name in ("alpha", "beta", "E"):
        assert chinchilla.params[name].lo < EPOCH[name] < chinchilla.params[name].hi
    assert (chinchilla.n_column, chinchilla.d_column, chinchilla.c_column) == (
        "params_matmul",
        "samples",
        "flops_train",
    )
    assert laws["loss_of_d"].params["gamma"].lo < EPOCH["beta"] < laws["loss_of_d"].params["gamma"].hi
    assert laws["n_opt"].target == "params_matmul"
    assert all(p.lo is not None for law in laws.values() for p in law.params.values())


@pytest.mark.parametrize(("widths", "fractions", "seeds"), [(4, 4, 2), (4, 4, 1), (3, 3, 1), (2, 2, 1), (1, 1, 1)])
def test_small_grids_give_laws_or_say_why_not(widths, fractions, seeds):
    laws = study_laws(grid_runs(widths, fractions, seeds))
    assert [law.id for law in laws] == NAMES
    for law in laws:
        assert law.params or law.status == {FitStatus.TOO_FEW_POINTS}
        entry = json.loads(json.dumps(law.to_json(), allow_nan=False))
        assert Law.from_json(entry).to_json() == entry
    if widths == 4 and seeds == 2:
        assert laws[0].params["alpha"].lo is not None


def test_runs_without_a_result_are_left_out_with_a_reason(runs):
    runs.loc[0, ["status", "error", "val_loss"]] = ["diverged", "non_finite: loss is NaN at step 12", np.nan]
    runs.loc[1, ["status", "error"]] = ["failed", "oom: out of memory"]
    runs.loc[2, "val_loss"] = np.nan
    law = study_laws(runs)[0]
    assert {e.key: e.reason for e in law.excluded} == {
        "w0-f0-s0": "diverged: non_finite: loss is NaN at step 12",
        "w0-f1-s0": "failed: oom: out of memory",
        "w0-f2-s0": "val_loss is not a positive number",
    }
    assert (law.n_points, law.n_used) == (90, 87)
    spoiled = runs.copy()
    spoiled.loc[1, "val_loss"] = 99.0
    assert study_laws(spoiled)[0].params == law.params


def test_a_slice_names_the_runs_it_left_out(runs):
    law = next(law for law in study_laws(runs) if law.id == "loss_of_n")
    assert (law.n_used, law.n_points) == (18, 90)
    assert {e.reason for e in law.excluded} == {"not at the largest D"}


def test_a_further_axis_gives_a_set_of_laws_each(runs):
    both = pd.concat([runs.assign(dropout=0.0), runs.assign(dropout=0.2, val_loss=runs["val_loss"] * 1.1)])
    order = list(runs.columns)
    order.insert(order.index("seed") + 1, "dropout")
    laws = study_laws(both[order], resamples=60)
    assert [law.id for law in laws[:2]] == ["chinchilla/dropout=0.0", "frontier/dropout=0.0"]
    assert laws[5].id == "chinchilla/dropout=0.2"
    assert laws[5]["E"] == pytest.approx(1.1 * laws[0]["E"], rel=1e-3)
    assert laws[5]["alpha"] == pytest.approx(laws[0]["alpha"], rel=1e-3)


def test_the_reported_half_is_a_target_on_request(runs):
    runs["val_loss_report"] = runs["val_loss"] * 1.01
    law = study_laws(runs, target="val_loss_report", resamples=0)[0]
    assert law.target == "val_loss_report"


def test_nullable_columns_are_welcome(runs):
    typed = runs.astype({"params_matmul": "Int64", "samples": "Int64", "val_loss": "Float64"})
    assert study_laws(typed, resamples=0)[0].params == study_laws(runs, resamples=0)[0].params


def test_accuracy_is_read_along_the_frontier(runs):
    law = study_laws(runs, resamples=0)[1]
    points = law.diagnostics["points"]
    expected = 0.9 - 0.1 * np.array(points["loss"])
    np.testing.assert_allclose(points["accuracy"], expected, atol=0.01)


def test_a_missing_column_is_named(runs):
    with pytest.raises(ValueError, match="family_key"):
        study_laws(runs.drop(columns="family_key"))


def test_a_table_without_one_finished_run_is_no_error(runs):
    laws = study_laws(runs.assign(status="failed"))
    assert all(law.status == {FitStatus.TOO_FEW_POINTS} for law in laws)
    assert len(laws[0].excluded) == 90


def test_anyones_columns_become_a_runs_table():
    table = as_runs([1e6, 1e7], [1e9, 1e9], [6e15, 6e16], [3.0, 2.5], keys=["a", "b"])
    assert table["family_key"].tolist() == ["a", "b"]
    assert (table["status"] == "done").all()


def test_runs_of_another_recipe_do_not_mix(runs):
    both = pd.concat([runs, runs.assign(batch_size=64, val_loss=runs["val_loss"] * 1.1)])
    laws = study_laws(both, resamples=0)
    assert [law.id for law in laws][::5] == ["chinchilla/batch_size=16", "chinchilla/batch_size=64"]
    assert laws[5]["E"] == pytest.approx(1.1 * laws[0]["E"], rel=1e-3)


def test_a_study_of_learning_rates_gives_their_law(runs):
    few = runs[(runs["seed"] == 0) & (runs["data_fraction"] >= 0.25)]
    tried = []
    for factor in 2.0 ** np.arange(-3, 4):
        best = 100 * few["params_matmul"] ** -0.7 * few["samples"] ** 0.3
        loss = few["val_loss"] + 0.1 * np.log(factor * 1.1) ** 2
        tried.append(few.assign(lr=best * factor * 1.1, lr_base=factor, val_loss=loss))
    laws = {law.id: law for law in study_laws(pd.concat(tried), resamples=60)}
    assert laws["lr_opt"]["n"] == pytest.approx(-0.7, abs=1e-6)
    assert laws["lr_opt"]["d"] == pytest.approx(0.3, abs=1e-6)
    assert laws["batch_opt"].status == {FitStatus.TOO_FEW_POINTS}


def staged(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The result rows of a study in stages, a rate tuned for each width, and the whole table: beside them a ramp of the rate and
    the probes of the tuning, some of which diverged."""
    grid = grid_runs(noise=0.005, seed=seed)
    tuned = 1e-2 / np.sqrt(grid["width"])
    results = grid.assign(role="result", lr_base=tuned, lr=tuned, schedule="wsd", optimizer="adam", precision="fp32")
    one = results[(results["seed"] == 0) & (results["data_fraction"] == 1)]
    ramp = one.head(1).assign(run_key="ramp", family_key="ramp", schedule="ramp", lr_base=1.0, lr=1.0, val_loss=9.0)
    tries = []
    for factor in (0.25, 0.5, 2.0, 4.0):
        rates = one["lr_base"] * factor
        keys = {name: one[name] + f"-x{factor}" for name in ("run_key", "family_key")}
        status = "diverged" if factor == 4.0 else "done"
        loss = np.nan if factor == 4.0 else one["val_loss"] * (1 + 0.1 * np.log(factor) ** 2)
        tries.append(one.assign(**keys, lr_base=rates, lr=rates, status=status, val_loss=loss))
    probes = pd.concat([ramp, *tries]).assign(role="probe")
    mixed = pd.concat([probes.head(7), results, probes.tail(-7)], ignore_index=True)
    return results, mixed


def test_probes_change_no_law():
    results, mixed = staged()
    alone, beside = study_laws(results, resamples=60), study_laws(mixed, resamples=60)
    assert [law.id for law in beside] == [law.id for law in alone] == NAMES
    for law, other in zip(alone, beside, strict=True):
        assert other.diagnostics["probes_left_out"] == len(mixed) - len(results)
        assert {**other.to_json(), "diagnostics": law.to_json()["diagnostics"]} == law.to_json()
        assert other.diagnostics == {**law.diagnostics, "probes_left_out": len(mixed) - len(results)}
        if law.evidence is not None:
            assert other.evidence.keys == law.evidence.keys
            for name, draws in law.evidence.draws.items():
                np.testing.assert_array_equal(other.evidence.draws[name], draws)


def test_a_rate_tuned_for_each_width_is_no_axis():
    results, _ = staged()
    assert results["lr_base"].nunique() == results["width"].nunique()
    assert extra_axes(results) == []
    # two rates at one width are two recipes
    twice = pd.concat([results, results.assign(lr_base=2 * results["lr_base"], lr=2 * results["lr"])])
    assert extra_axes(twice) == ["lr_base"]
    # and a rate tuned for each combination of another axis leaves that axis
    both = pd.concat([results, results.assign(schedule="cosine", lr_base=3 * results["lr_base"])])
    assert extra_axes(both) == ["schedule"]
