"""A study without the command line: checked on loading, planned, and one run of it trained here."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from folders import contents

import scalespec as ss
from scalespec.orchestrator.errors import InputError
from studies import toy_yaml


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text(toy_yaml(grid={"seed": [0, 1]}))
    return file


def test_a_study_is_checked_when_it_is_loaded(study):
    assert ss.Study.load(study, "grid.seed=[3]").spec.grid["seed"] == [3]
    with pytest.raises(InputError, match="unknown key"):
        ss.Study.load(study, "colour=1")


def test_a_plan_has_every_run_and_writes_nothing(study, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    planned = ss.Study.load(study).plan(storage=str(tmp_path / "results"))
    assert len(planned.runs) == 12
    assert planned.seconds > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_one_run_is_trained_in_this_process(study, tmp_path):
    result = ss.train(study, tmp_path / "out", width=16, data_fraction="1/2", seed=1)
    assert result["status"] == "done"
    assert 0 < result["val_loss"] < 10
    assert ss.local_run(tmp_path / "out").result() == json.loads(json.dumps(dict(result)))
    loaded = ss.Study.load(study, "grid.seed=[1]", "grid.width=[16]")
    again = ss.train(loaded, tmp_path / "again", data_fraction=Fraction(1, 2))
    assert again["val_loss"] == result["val_loss"]


def test_a_folder_keeps_one_run(study, tmp_path):
    where = {"width": 16, "data_fraction": "1/4"}
    result = ss.train(study, tmp_path / "out", **where, seed=1)
    before = contents(tmp_path / "out")
    assert dict(ss.train(study, tmp_path / "out", **where, seed=1)) == json.loads(json.dumps(dict(result)))
    assert contents(tmp_path / "out") == before
    with pytest.raises(InputError, match=r"holds the run w0016-f025-s1-\w+, not w0016-f025-s0-\w+; train into another"):
        ss.train(study, tmp_path / "out", **where, seed=0)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"width": 7}, "no run of toy, width=7; leave an axis out"),
        ({"colour": 1}, "colour is no axis of toy; its axes are width, seed, data_fraction"),
        ({"index": 12}, "index 12 of toy; it is from 0 to 11"),
        ({"index": 6, "width": 8}, "index 6 of toy, width=8; it is from 0 to 5"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(study, tmp_path, where, words):
    with pytest.raises(InputError, match=words):
        ss.train(study, tmp_path / "out", **where)


def test_spectra_of_a_checkpoint_are_a_table(study, tmp_path):
    ss.train(study, tmp_path / "out", width=16, data_fraction="1/4", seed=0)
    rows = ss.spectra(tmp_path / "out")
    assert set(rows.columns) >= {"step", "layer", "alpha", "trusted", "status"}
    assert rows["step"].nunique() > 1
    with pytest.raises(InputError, match="absent"):
        ss.spectra(tmp_path / "absent")
