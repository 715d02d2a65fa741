"""Every verb as it is typed: exit codes, one line for bad input, nothing written where nothing should be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import toy_task
from folders import contents
from mlflow import MlflowClient
from trained import prepared, trained

from scalespec import analysis
from scalespec.analysis import tables
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.lease import lease
from scalespec.orchestrator.terminal import progress
from studies import toy_yaml

SMALL: dict[str, Any] = {
    "grid": {"width": [8], "data_fraction": ["1", "1/2"]},
    "data": {"limit": 256},
    "train": {"checkpoints": 3},
}


def study_file(folder: Path, **changes: Any) -> Path:
    path = folder / "toy.yaml"
    path.write_text(toy_yaml(**{**SMALL, **changes}))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The folder of a trained study without tables; not to be changed."""
    root = tmp_path_factory.mktemp("cli") / "toy"
    trained(root, **SMALL, report=False)
    return root


@pytest.fixture
def study(done, tmp_path) -> Path:
    shutil.copytree(done, tmp_path / "toy")
    return tmp_path / "toy"


# -- plan ----------------------------------------------------------------------------------------------------------------


def test_plan_shows_every_run_and_writes_nothing(scalespec, tmp_path):
    grid = {"width": [8, 16], "data_fraction": ["1", "1/2"], "dropout": [0.0, 0.5]}
    path = study_file(tmp_path, grid=grid, resources={"price_per_hour": 2.0})
    before = contents(tmp_path)
    said = scalespec("plan", path)
    source = Path(toy_task.__file__)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    assert (said.code, said.err) == (0, f"task toy_task:Toy: {source} (sha256 {digest}…)\n")
    head, *rows = said.out.splitlines()
    assert head.split() == ["run", "dropout", "N", "steps", "D", "lr", "FLOP", "time", "disk", "unit"]
    runs = [row.split()[:4] for row in rows if row.startswith("w") and "f=" in row]
    assert sorted(runs) == sorted(
        [f"w{width}", f"f={fraction}", "s0", dropout]
        for width in (8, 16)
        for fraction in ("1", "1/2")
        for dropout in ("0.0", "0.5")
    )
    assert "8 runs" in said.out
    assert "USD" in said.out
    assert "warning: 8 runs have fewer than 200 steps" in said.out
    assert contents(tmp_path) == before


def test_plan_as_json(scalespec, tmp_path):
    path = study_file(tmp_path)
    found = json.loads(scalespec("plan", path, "--json", "--set", "grid.seed=[0, 1, 2]").out)
    assert len(found["runs"]) == 6
    assert {run["seed"] for run in found["runs"]} == {0, 1, 2}
    assert found["finished"] == []
    held = [key for unit in found["units"] for key in unit["run_keys"]]
    assert sorted(held) == sorted(run["run_key"] for run in found["runs"])
    assert found["further_runs"] == 0


def test_plan_knows_what_is_finished(scalespec, study):
    path = study_file(study.parent)
    found = json.loads(scalespec("plan", path, "--json", "--storage", study.parent, "--set", "grid.width=[8, 16]").out)
    assert len(found["finished"]) == 2
    assert {run["width"] for run in found["runs"]} == {16}
    said = scalespec("plan", path, "--storage", study.parent)
    assert "0 runs, 2 finished before" in said.out


def test_plan_of_stages_bounds_what_depends_on_results(scalespec, tmp_path):
    grid = {"width": [8], "data_fraction": ["1"], "seed": [0, 1]}
    stages = [
        {"name": "ramp", "grid": {"width": [8]}, "schedule": {"name": "ramp"}, "optim": {"lr": 1.0}},
        {"name": "large", "grid": grid, "optim": {"lr": {"reading": "onset_lr", "of": "ramp"}}},
    ]
    path = study_file(tmp_path, design=stages)
    before = contents(tmp_path)
    said = scalespec("plan", path)
    assert said.code == 0, said
    assert "1 runs, at most 2 more once their results are read" in said.out
    found = json.loads(scalespec("plan", path, "--json").out)
    assert (len(found["runs"]), found["further_runs"]) == (1, 2)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("width", [30, 80, 250])
def test_no_number_is_cut_off_however_narrow_the_terminal(scalespec, tmp_path, monkeypatch, width):
    monkeypatch.setattr(progress.console, "_width", width)
    path = study_file(tmp_path, grid={"width": [8], "data_fraction": ["1"]})
    said = scalespec("plan", path)
    assert "…" not in said.out
    assert "w8 f=1 s0" in said.out
    assert all(word in said.out for word in ("steps", "FLOP", "unit"))


def test_plan_of_mnist_is_the_table_of_the_design(scalespec, shared, tmp_path, monkeypatch):
    monkeypatch.setattr("scalespec.orchestrator.engine.probe.PROBE_S", 0.02)
    root = Path(__file__).parents[2]
    said = scalespec(
        "plan", root / "studies/mnist.yaml", "--set", f"data.path={shared}/data/mnist", "--set", "grid.seed=[0]"
    )
    assert (said.code, said.err) == (0, "")
    rows = [line.split() for line in said.out.splitlines() if line.startswith("w")]
    assert len([row for row in rows if row[0] in ("w4", "w32")]) == 20
    longest = next(row for row in rows if row[:2] == ["w32", "f=1"])
    assert longest[5] == "3750"  # 60,000 images in batches of 16
    assert contents(tmp_path) == {"here": None}


# -- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--set", "optim.lrr=1"], "optim.lrr"),
        (["--set", "optim.lr=0"], "optim.lr"),
        (["--set", "name=../up"], "name"),
        (["--set", "optim.lr"], "--set optim.lr"),
        (["--storage", "nosuch://there"], "storage nosuch://there"),
    ],
)
def test_a_study_that_cannot_be_is_one_line(refused, tmp_path, changes, words):
    for verb in ("plan", "run"):
        assert words in refused(verb, study_file(tmp_path), *changes)


IMPOSSIBLE_GRIDS = [
    ("grid.width=[8, 8]", "grid.width: 8 occurs more than once"),
    ("grid.dropuot=[0]", "grid.dropuot"),
    ("task.name=absent:Task", "no module absent beside"),
    ("grid.data_fraction=[1/1000]", "less than one batch"),
]


@pytest.mark.parametrize(("change", "words"), IMPOSSIBLE_GRIDS)
def test_a_grid_that_cannot_be_is_one_line(refused, tmp_path, change, words):
    assert words in refused("plan", study_file(tmp_path), "--set", change)


@pytest.mark.ray
@pytest.mark.parametrize(("change", "words"), IMPOSSIBLE_GRIDS)
def test_a_grid_that_cannot_be_run_is_one_line(refused, ray_cluster, tmp_path, change, words):
    assert words in refused("run", study_file(tmp_path), "--set", change)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_file_that_is_no_study_is_named(refused, tmp_path, verb):
    assert "absent.yaml: No such file" in refused(verb, tmp_path / "absent.yaml")
    (tmp_path / "odd.yaml").write_text("name: [")
    assert "odd.yaml:1: not valid YAML" in refused(verb, tmp_path / "odd.yaml")
    (tmp_path / "odd.yaml").write_text(toy_yaml().replace("lr: 0.01", "lr: fast"))
    assert "optim.lr: must be a number above 0; 'fast' is not a number" in refused(verb, tmp_path / "odd.yaml")


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_study_folder_is_no_study_file(refused, study, verb):
    """A folder may come from anywhere, and these verbs run what a study names."""
    assert f"{study}: is a folder; give the study's YAML file" in refused(verb, study)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_relative_storage_inside_a_job_is_refused(refused, tmp_path, monkeypatch, verb):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "add --storage with an absolute path" in refused(verb, study_file(tmp_path))


@pytest.mark.ray
def test_what_does_not_fit_is_refused_before_anything_is_written(refused, ray_cluster, tmp_path):
    message = refused("run", study_file(tmp_path), "--set", "train.workers=16")
    assert f"16 workers need 16 CPUs, Ray has {ray_cluster.cpus}" in message


@pytest.mark.ray
def test_a_storage_that_cannot_be_written_is_refused(refused, ray_cluster, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write there" in refused("run", study_file(tmp_path), "--storage", tmp_path / "file")


def test_a_folder_that_is_no_study_is_named(refused, tmp_path):
    for verb in ("status", "analyze", "sync", "ui"):
        assert f"{tmp_path}: no study.yaml there" in refused(verb, tmp_path)
        assert "absent: no study.yaml there" in refused(verb, tmp_path / "absent")
        assert "storage nosuch://x" in refused(verb, "nosuch://x")


def test_a_wrong_word_is_exit_code_two(scalespec):
    for arguments in (["nonsense"], ["plan"], ["plan", "--absent", "x"], ["fit", "t.csv"], []):
        assert scalespec(*arguments).code == 2


def test_help_is_there_for_every_verb(scalespec):
    for verb in ("plan", "run", "status", "spectra", "fit", "analyze", "sync", "ui", "doctor"):
        said = scalespec(verb, "--help")
        assert said.code == 0
        assert verb in said.out


# -- a study on disk -----------------------------------------------------------------------------------------------------


def test_status_as_a_grid_and_as_json(scalespec, study):
    said = scalespec("status", study)
    assert said.code == 0
    assert "✔ 2 done" in said.out
    found = json.loads(scalespec("status", study, "--json").out)
    assert [run["state"] for run in found["runs"].values()] == ["done", "done"]


def test_status_names_what_is_not_done(scalespec, tmp_path):
    root = tmp_path / "toy"
    trained(root, **SMALL, task={"name": "toy_task:Toy", "raise_width": 8})
    said = scalespec("status", root)
    assert "✘ 2 failed" in said.out
    assert said.out.count("a bug of the user's own") == 2


def test_status_of_a_study_that_has_not_begun(scalespec, tmp_path):
    prepared(tmp_path / "toy", **SMALL)
    assert "· 2 missing" in scalespec("status", tmp_path / "toy").out


def test_analyze_makes_the_tables_and_says_what_it_found(scalespec, study):
    said = scalespec("analyze", study)
    assert (said.code, said.err) == (0, "")
    assert "2 done" in said.out
    for name in tables.TABLES:
        assert pq.read_table(study / "tables" / f"{name}.parquet").num_rows >= 0
    assert len(analysis.load(study).runs) == 2
    assert isinstance(json.loads((study / "laws.json").read_text()), list)
    before = contents(study)
    assert scalespec("analyze", study).code == 0
    assert contents(study) == before


def test_analyze_of_failed_runs_names_them_and_is_exit_code_one(scalespec, tmp_path):
    root = tmp_path / "toy"
    trained(root, **SMALL, report=False, task={"name": "toy_task:Toy", "raise_width": 8})
    said = scalespec("analyze", root)
    assert said.code == 1
    assert "2 failed" in said.out
    assert said.out.count(": failed") == 2


def test_sync_brings_mlflow_into_line_and_repeats_safely(scalespec, study):
    assert scalespec("analyze", study).code == 0
    for _ in range(2):
        said = scalespec("sync", study)
        assert said.code == 0
        assert f"2 runs are in MLflow at sqlite:///{study}/mlflow.db" in said.out
    client = MlflowClient(f"sqlite:///{study}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert len(runs) == 3
    assert analysis.load(study).runs["mlflow_run_id"].notna().all()


def test_sync_to_a_server_that_is_away_is_one_line(refused, study, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    message = refused("sync", study, "--tracking-uri", "http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9" in message
    assert "start the server and run sync again" in message


def test_ui_serves_the_study_s_own_store_on_loopback(scalespec, study, monkeypatch, capsys):
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append(arguments))
    assert scalespec("ui", study, "--port", "5123").code == 0
    (command,) = called
    assert command[1:4] == ["-m", "mlflow", "ui"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--backend-store-uri"] == f"sqlite:///{study}/mlflow.db"
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "5123")


def test_ui_without_a_store_of_its_own_says_what_to_do(refused, study, monkeypatch):
    monkeypatch.setattr("scalespec.orchestrator.tracking.mlflow.is_local_disk", lambda path: False)
    assert "--tracking-uri" in refused("ui", study)


# -- fit -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path) -> Path:
    """A surface without noise."""
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 1e11, 6)))
    frame = pd.DataFrame({"params": n, "tokens": d, "flops": 6 * n * d})
    frame["loss"] = 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28
    frame.to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


def test_fit_prints_the_law_with_intervals_and_verdict(scalespec, table):
    said = scalespec("fit", table, "--loss", "loss", "--n", "params", "--c", "flops")
    assert (said.code, said.err) == (0, "")
    assert "D = C / 6N" in said.out
    assert "95% interval" in said.out
    words = [line.split() for line in said.out.splitlines()]
    found = {line[0]: float(line[1]) for line in words if line and line[0] in ("alpha", "beta", "E")}
    assert found == pytest.approx({"alpha": 0.34, "beta": 0.28, "E": 1.69}, rel=1e-3)
    assert said.out.count("best at ") == 2
    assert "the largest budget: N = " in said.out


def test_fit_as_json_and_into_a_file(scalespec, table, tmp_path):
    out = tmp_path / "law.json"
    said = scalespec("fit", table, "--loss", "loss", "--n", "params", "--d", "tokens", "--json", "--out", out)
    (law,) = json.loads(said.out)  # the list of laws.json
    assert [law] == json.loads(out.read_text())
    assert law["params"]["alpha"]["value"] == pytest.approx(0.34, rel=1e-3)
    assert law["params"]["beta"]["value"] == pytest.approx(0.28, rel=1e-3)
    assert law["params"]["alpha"]["lo"] <= law["params"]["alpha"]["value"] <= law["params"]["alpha"]["hi"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "los", "--n", "params", "--d", "tokens"], "--loss los: no such column"),
        (["--loss", "loss", "--n", "params"], "give two of --n, --d and --c"),
        (["--loss", "loss", "--n", "params", "--d", "tokens", "--where", "loss"], "--where loss"),
        (["--loss", "loss", "--n", "params", "--d", "tokens", "--where", "loss < 0"], "at least 6"),
        (["--loss", "loss", "--n", "params", "--d", "tokens", "--form", "odd"], "--form odd"),
        (["--loss", "loss", "--n", "params", "--d", "tokens", "--delta", "-1"], "delta"),
        (["--loss", "loss", "--n", "params", "--d", "tokens", "--out", "absent/law.json"], "--out absent/law.json"),
    ],
)
def test_a_fit_that_cannot_be_is_one_line(refused, table, options, words):
    assert words in refused("fit", table, *options)


# -- doctor --------------------------------------------------------------------------------------------------------------


def test_doctor_leaves_nothing_behind(scalespec, tmp_path):
    path = study_file(tmp_path, storage="./results")
    before = contents(tmp_path)
    said = scalespec("doctor", path)
    assert said.code in (0, 1)
    assert "✔ study: task toy_task:Toy" in said.out
    assert "✔ storage" in said.out
    assert contents(tmp_path) == before


def test_doctor_is_exit_code_one_where_a_check_fails(scalespec, tmp_path):
    said = scalespec("doctor", tmp_path / "absent.yaml")
    assert said.code == 1
    assert "✘ study: " in said.out
    assert "remedy: mend the study file" in said.out


# -- run -----------------------------------------------------------------------------------------------------------------


def test_an_interrupted_study_says_how_to_go_on(scalespec, tmp_path, monkeypatch):
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scalespec.orchestrator.run.run_study", interrupted)
    path = study_file(tmp_path)
    said = scalespec("run", path, "--set", "grid.seed=[0, 1]", "--storage", "/data")
    assert said.code == 130
    assert f"scalespec run {path} --set 'grid.seed=[0, 1]' --storage /data" in said.out


@pytest.mark.ray
@pytest.mark.slow
def test_run_goes_to_the_end_and_again_does_nothing(scalespec, ray_cluster, tmp_path):
    path = study_file(tmp_path, spectra={"every": "last"}, report=False, grid={"width": [8], "data_fraction": ["1"]})
    said = scalespec("run", path)
    root = tmp_path / "here/results/toy"
    assert said.code == 0, said
    assert "1 done" in said.out
    assert f"scalespec ui {root}" in said.out
    runs = contents(root / "runs")
    said = scalespec("run", path)
    assert (said.code, contents(root / "runs")) == (0, runs)
    assert "all 1 runs are finished" in said.out
    # another task of the same name would mix two studies in one folder
    other = tmp_path / "other.yaml"
    other.write_text(toy_yaml(task={"name": "mnist_cnn"}))
    said = scalespec("run", other)
    assert said.code == 2
    assert "holds a study of another task" in said.err
    with lease(StudyStore(str(root))):
        said = scalespec("run", path)
    assert said.code == 2
    assert f"process {os.getpid()}" in said.err
