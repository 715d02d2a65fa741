"""A study read back in a notebook: its tables, and laws that are as good as on the day they were fitted."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
from finished import finished

from scalespec.analysis import load, tables
from scalespec.analysis.laws import optimum, predict
from scalespec.analysis.plots.style import to_svg


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "grid"
    return folder, finished(folder)


def test_a_law_read_from_disk_has_the_intervals_of_the_one_in_memory(study):
    folder, laws = study
    results = load(folder)
    assert set(results.laws["id"]) == {law.id for law in laws}
    mine, its = laws[0], results.law("chinchilla")
    assert optimum(its, 1e23) == optimum(mine, 1e23)
    assert its.best(1e23).n == optimum(mine, 1e23)["n"]
    assert its.best(1e23).n.lo is not None
    (there,) = predict(mine, [1e10], [1e11])
    forecast = its.forecast(1e10, 1e11)
    assert (forecast.value, forecast.law_lo, forecast.law_hi) == (there.value, there.lo, there.hi)


def test_a_uri_is_as_good_as_a_path(study):
    folder, _ = study
    by_uri, by_path = load(f"file://{folder}"), load(folder)
    assert by_uri.law("chinchilla").best(1e23) == by_path.law("chinchilla").best(1e23)
    assert by_uri.runs.equals(by_path.runs)
    assert by_uri.asks.equals(by_path.asks)


def test_which_stage_asked_for_a_run_is_there(study):
    results = load(study[0])
    assert list(results.asks["run_key"]) == list(results.runs["run_key"])
    assert set(results.asks["role"]) == {"result"}


def test_the_points_of_a_law_are_results_not_probes(study, tmp_path):
    """A law read from disk shows the runs it was fitted to, whatever else the study tried."""
    shutil.copytree(study[0], tmp_path / "staged")
    file = tmp_path / "staged/tables/runs.parquet"
    runs = tables.to_pandas(tables.read_parquet(file))
    probes = runs.head(5).assign(run_key=lambda r: r["run_key"] + "-probe", schedule="ramp", role="probe", val_loss=9.0)
    both = pd.concat([probes, runs.assign(role="result")])
    pq.write_table(
        tables.from_rows(both.astype(object).where(both.notna(), None).to_dict("records"), tables.RUNS), file
    )
    law, before = load(tmp_path / "staged").law("chinchilla"), load(study[0]).law("chinchilla")
    pd.testing.assert_frame_equal(law.points, before.points)


@pytest.mark.parametrize("name", ["chinchilla", "frontier", "n_opt", "loss_of_n", "loss_of_d"])
def test_every_law_of_a_study_has_words_and_a_picture(study, name):
    law = load(study[0]).law(name)
    assert law.verdict
    assert to_svg(law.plot()).startswith("<svg")
    assert len(law.points) == law.n_points - len(law.excluded)


def test_the_points_of_a_law_are_those_it_was_fitted_to(study):
    """Whatever runs the tables hold by now."""
    results = load(study[0])
    law = results.law("chinchilla")
    more = dataclasses.replace(
        results, runs=pd.concat([results.runs, results.runs.assign(run_key="later", batch_size=32)])
    )
    assert more.law("chinchilla").points.equals(law.points)
    assert list(law.points.index) == list(law.evidence.keys)
    assert (law.points["loss"].to_numpy() == law.evidence.columns["loss"]).all()


def test_a_law_that_is_not_there_is_named_with_those_that_are(study):
    with pytest.raises(KeyError, match="chinchila: no such law; the study has: chinchilla, frontier"):
        load(study[0]).law("chinchilla".replace("ll", "l"))


def test_laws_written_without_draws_are_read_without_intervals(study, tmp_path):
    shutil.copytree(study[0], tmp_path / "old")
    (tmp_path / "old/laws.parquet").unlink()
    law = load(tmp_path / "old").law("chinchilla")
    assert law.params["alpha"].lo is not None
    assert law.best(1e23).n.lo is None
    assert law.forecast(1e10, 1e11).law_hi == float("inf")


def test_a_write_that_was_cut_off_is_said(study, tmp_path):
    """The draws are written before laws.json: of new draws beside old laws nothing is believed."""
    shutil.copytree(study[0], tmp_path / "cut")
    entries = json.loads((tmp_path / "cut/laws.json").read_text())
    entries[0]["params"]["alpha"]["value"] *= 1.1
    (tmp_path / "cut/laws.json").write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="does not belong to"):
        assert load(tmp_path / "cut").law("chinchilla").best(1e23).n.lo is None


def test_a_folder_that_is_no_study_is_one_line(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no tables/runs.parquet there; give the folder that `scalespec run` made"
    ):
        load(tmp_path)
