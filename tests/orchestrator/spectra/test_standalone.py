"""`scalespec spectra` on checkpoints that no study has made, as it is typed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from trained import trained

from scalespec.analysis import tables


def weights(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((64, 48)).astype(np.float32) for name in ("a.weight", "b.weight")}
    safetensors.numpy.save_file({**arrays, "a.bias": np.ones(48, np.float32)}, path)
    return path


def test_spectra_of_a_file(scalespec, tmp_path):
    said = scalespec("spectra", weights(tmp_path / "model.safetensors"), "--json")
    rows = json.loads(said.out)
    assert [row["layer"] for row in rows] == ["a.weight", "b.weight"]
    matrix = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    assert rows[0]["spectral_norm"] == pytest.approx(np.linalg.norm(matrix.astype(float), 2) ** 2, rel=1e-6)
    shown = scalespec("spectra", tmp_path / "model.safetensors").out
    assert "a.weight" in shown
    assert f"{rows[0]['alpha']:.4g}" in shown
    assert "…" not in shown


def test_spectra_of_a_series_of_checkpoints(scalespec, tmp_path):
    (tmp_path / "series").mkdir()
    for step in (100, 20, 3):
        weights(tmp_path / f"series/step-{step}.safetensors", seed=step)
    out = tmp_path / "rows.parquet"
    said = scalespec("spectra", tmp_path / "series", "--out", out, "--json")
    rows = json.loads(said.out)
    assert [(row["step"], row["layer"]) for row in rows] == [
        (step, layer) for step in (3, 20, 100) for layer in ("a.weight", "b.weight")
    ]
    assert rows[0]["distance_from_init"] is None
    assert rows[2]["distance_from_init"] > 0
    written = tables.read_parquet(str(out))
    assert written.schema == tables.SPECTRA
    assert written.num_rows == 6
    assert len(written["eigenvalues"][0].as_py()) == 48


def test_files_that_differ_in_their_step_are_a_series(scalespec, refused, tmp_path):
    files = [weights(tmp_path / f"a_epoch{step:02}.safetensors", seed=step) for step in (10, 2)]
    other = weights(tmp_path / "b_epoch03.safetensors", seed=3)
    rows = json.loads(scalespec("spectra", *files, other, "--json").out)
    steps = [(row["run_key"], row["step"]) for row in rows if row["layer"] == "a.weight"]
    assert steps == [(str(tmp_path / "a_epoch*.safetensors"), step) for step in (2, 10)] + [(str(other), 3)]
    assert [row["distance_from_init"] is None for row in rows if row["layer"] == "a.weight"] == [True, False, True]
    same = weights(tmp_path / "a_epoch2.safetensors")
    assert "a_epoch02.safetensors and" in refused("spectra", *files, same)


def test_folders_that_differ_in_their_step_are_a_series(scalespec, tmp_path):
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        weights(tmp_path / f"checkpoint-{step}/model.safetensors", seed=step)
    rows = json.loads(scalespec("spectra", *sorted(tmp_path.glob("checkpoint-*")), "--json").out)
    assert [row["step"] for row in rows] == [500, 500, 1000, 1000]
    assert {row["run_key"] for row in rows} == {str(tmp_path / "checkpoint-*")}


def test_spectra_of_a_run_and_of_several_paths(scalespec, tmp_path):
    trained(tmp_path / "toy", grid={"width": [8], "data_fraction": ["1", "1/2"]}, data={"limit": 256})
    runs = sorted((tmp_path / "toy/runs").iterdir())
    rows = json.loads(scalespec("spectra", *runs, "--json").out)
    assert {row["run_key"] for row in rows} == {str(run) for run in runs}
    steps = {row["step"] for row in rows if row["run_key"] == str(runs[0])}
    assert 0 in steps
    assert len(steps) >= 3


def test_spectra_as_csv_and_pictures(scalespec, tmp_path):
    out, plots = tmp_path / "rows.csv", tmp_path / "plots"
    said = scalespec("spectra", weights(tmp_path / "model.safetensors"), "--out", out, "--plots", plots)
    assert (said.code, said.err) == (0, "")
    assert "eigenvalues" not in pd.read_csv(out).columns
    assert len(pd.read_csv(out)) == 2
    drawn = list(plots.iterdir())
    assert drawn
    assert all(path.suffix == ".svg" and "<svg" in path.read_text() for path in drawn)


def test_one_bad_layer_does_not_hide_the_others(scalespec, tmp_path):
    arrays = {"bad.weight": np.full((32, 32), np.nan, np.float32), "zero.weight": np.zeros((32, 32), np.float32)}
    arrays["good.weight"] = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    said = scalespec("spectra", tmp_path / "model.safetensors", "--json")
    assert said.code == 0
    assert {row["layer"]: row["status"] for row in json.loads(said.out)} == {
        "bad.weight": "nan",
        "zero.weight": "zero",
        "good.weight": "ok",
    }


def test_what_is_no_checkpoint_is_one_line(refused, tmp_path):
    whole = weights(tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    assert "cut.safetensors: truncated" in refused("spectra", tmp_path / "cut.safetensors")
    (tmp_path / "head.safetensors").write_bytes(whole[:20])
    assert "head.safetensors: not a safetensors file" in refused("spectra", tmp_path / "head.safetensors")
    assert "absent: no such file" in refused("spectra", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "empty: no .safetensors" in refused("spectra", tmp_path / "empty")
    assert "--profile odd" in refused("spectra", tmp_path / "whole.safetensors", "--profile", "odd")
    assert "end the name in .parquet or .csv" in refused("spectra", tmp_path / "whole.safetensors", "--out", "rows.txt")
    assert "--out absent/rows.csv" in refused("spectra", tmp_path / "whole.safetensors", "--out", "absent/rows.csv")
    assert "--plots" in refused("spectra", tmp_path / "whole.safetensors", "--plots", tmp_path / "whole.safetensors")


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.bin"])
def test_nothing_is_unpickled(refused, tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"w": Hostile(tmp_path / "ran")}))
    message = refused("spectra", tmp_path / name)
    assert name in message
    assert "pickle" in message
    assert not (tmp_path / "ran").exists()
