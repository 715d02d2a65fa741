"""Whole studies through Ray and MLflow. Everything is asserted on what a user can see: files, tables, MLflow's API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from scalespec import analysis
from scalespec.analysis import tables
from scalespec.analysis.readings import ReadingValue
from scalespec.orchestrator import conclude
from scalespec.orchestrator import run as runs
from scalespec.orchestrator.design import log
from scalespec.orchestrator.engine import work
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.lease import lease
from scalespec.orchestrator.terminal.command import command
from scalespec.orchestrator.tracking.mlflow import PARENT
from studies import toy_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

# the path of a checkpoint names the attempt that made it
WALL_CLOCK = ["path", "duration_s", "started_at", "mlflow_run_id", "samples_per_s", "mfu", "cost_usd", "code_version"]


def write(folder: Path, **changes) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "toy.yaml"
    path.write_text(toy_yaml(storage=str(folder / "results"), **changes))
    return str(path)


def run_in_process(study: str, *more: str, **environment: str) -> subprocess.Popen[str]:
    typed = [sys.executable, "-m", "scalespec", "run", study, *more]
    return subprocess.Popen(
        typed,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    if "metric" in frame:
        frame = frame[frame["metric"] != "samples_per_s"].reset_index(drop=True)
    return frame.drop(columns=[name for name in WALL_CLOCK if name in frame])


@pytest.fixture(scope="module")
def finished(ray_cluster, tmp_path_factory):
    """One whole study; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = runs.run_study(write(folder, grid={"width": [8, 16, 32], "seed": [0, 1]}))
    return folder / "results/toy", outcome


def test_a_study_reaches_every_station(finished):
    folder, outcome = finished
    assert outcome.exit_code == 0
    assert set(outcome.states.values()) == {"done"}
    assert outcome.tracked
    assert {
        "study.yaml",
        "asks",
        "plan.json",
        "mlflow.db",
        "runs",
        "families",
        "spectra",
        "tables",
        "laws.json",
        "report",
    } <= set(os.listdir(folder))
    assert not (folder / ".ray").exists()
    assert not (folder / "lease.json").exists()


def test_the_tables_are_those_of_the_contract(finished):
    folder, _ = finished
    for name, schema in tables.TABLES.items():
        found = pq.read_schema(folder / "tables" / f"{name}.parquet")
        expected = tables.with_axes(schema, {})
        assert found.names == expected.names, name
        assert [field.type for field in found] == [field.type for field in expected], name
    result = analysis.load(folder)
    assert len(result.runs) == 18
    assert not result.runs["val_loss"].isna().any()
    assert set(result.curves["metric"]) >= {
        "train_loss",
        "train_loss_ema",
        "val_loss",
        "val_accuracy",
        "lr",
        "grad_norm",
        "samples_per_s",
    }
    assert set(result.spectra["run_key"]) == set(result.runs["run_key"])
    assert {"alpha", "beta", "E", "a"} <= set(result.laws.loc[result.laws["form"] == "chinchilla", "param"])
    by_run = result.checkpoints.groupby("run_key")["step"]
    assert (by_run.min() == 0).all()
    assert (by_run.max() == result.runs.set_index("run_key")["steps"]).all()


def test_per_example_losses_average_to_the_columns(finished):
    folder, _ = finished
    row = analysis.load(folder).runs.iloc[0]
    val = pq.read_table(folder / "runs" / row["run_key"] / "e000001/val.parquet").to_pandas()
    assert val["loss"].mean() == pytest.approx(row["val_loss"], rel=1e-12)
    assert val["loss"].sem() == pytest.approx(row["val_loss_se"], rel=1e-12)
    for half in ("select", "report"):
        assert val.loc[val["half"] == half, "loss"].mean() == pytest.approx(row[f"val_loss_{half}"], rel=1e-12)


def test_mlflow_shows_one_parent_and_a_child_for_each_run(finished):
    folder, _ = finished
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    everything = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in everything if PARENT in run.data.tags]
    (parent,) = [run for run in everything if PARENT not in run.data.tags]
    result = analysis.load(folder)
    assert sorted(run.data.tags["run_key"] for run in children) == sorted(result.runs["run_key"])
    assert {run.info.status for run in everything} == {"FINISHED"}
    child = children[0]
    key = child.data.tags["run_key"]
    assert child.info.run_id == result.runs.set_index("run_key").loc[key, "mlflow_run_id"]
    assert child.data.params["width"] == str(result.runs.set_index("run_key").loc[key, "width"])
    history = {m.step: m.value for m in client.get_metric_history(child.info.run_id, "val_loss")}
    curve = result.curves.query("run_key == @key and metric == 'val_loss'")
    assert history == dict(zip(curve["step"], curve["value"], strict=True))
    steps = {m.step for m in client.get_metric_history(child.info.run_id, "spectra/n_total")}
    assert steps == set(result.checkpoints.query("run_key == @key")["step"])
    assert len(child.data.metrics) <= 40
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report", "study.yaml", "laws.json"} <= artifacts


def test_running_again_does_nothing_and_a_grown_grid_adds_only_the_new_runs(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "results/toy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results/toy/runs").rglob("result.json")}
    outcome = runs.run_study(
        write(tmp_path, grid={"width": [8, 16, 32], "seed": [0, 1], "data_fraction": ["1", "1/2", "1/4", "3/4"]})
    )
    assert outcome.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    after = list((tmp_path / "results/toy/runs").rglob("result.json"))
    assert len(after) == len(before) + 6
    result = analysis.load(tmp_path / "results/toy")
    assert len(result.runs) == 24
    # a study that shrank again shows its own runs only; the folders of the others stay
    outcome = runs.run_study(write(tmp_path, grid={"width": [8], "seed": [0]}))
    assert len(outcome.states) == 3
    assert len(analysis.load(tmp_path / "results/toy").runs) == 3
    assert len(list((tmp_path / "results/toy/runs").iterdir())) == 24


def test_a_trunk_and_lonely_runs_give_equal_weights(ray_cluster, tmp_path):
    found = {}
    for reuse in (True, False):
        folder = tmp_path / str(reuse)
        changes = {
            "grid": {"width": [8]},
            "train": {"reuse_trunk": reuse},
            "spectra": {"every": "never"},
            "report": False,
        }
        assert runs.run_study(write(folder, **changes)).exit_code == 0
        result = analysis.load(folder / "results/toy")
        found[reuse] = result.checkpoints.set_index(["run_key", "step"])["sha256"]
        assert (folder / "results/toy/families").exists() is reuse
    assert found[True].equals(found[False])


def test_faults_are_typed_and_the_other_runs_are_done(ray_cluster, tmp_path):
    """One width kills its worker every time, one has a bug, one explodes; the others are done."""
    faults = {
        "kill_width": 16,
        "kill_file": str(tmp_path / "deaths"),
        "kill_times": 99,
        "raise_width": 24,
        "explode_width": 32,
    }
    widths = {"width": [8, 16, 24, 32, 40], "data_fraction": ["1"]}
    study = write(
        tmp_path, task={"name": "toy_task:Toy", **faults}, grid=widths, spectra={"every": "last"}, report=False
    )
    outcome = runs.run_study(study)
    assert outcome.exit_code == 1
    frame = analysis.load(tmp_path / "results/toy").runs.set_index("width")
    assert frame["status"].to_dict() == {8: "done", 16: "failed", 24: "failed", 32: "diverged", 40: "done"}
    assert frame.loc[16, "error"].startswith("worker_died")
    assert frame.loc[24, "error"] == "bug: RuntimeError: a bug of the user's own"
    assert frame.loc[32, "error"].startswith("non_finite")
    assert (tmp_path / "deaths").read_bytes() == b"xx"
    # the cause removed, the same command tries the failed runs again and leaves the others alone
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results/toy/runs").rglob("result.json")}
    (tmp_path / "deaths").write_bytes(b"x" * 99)
    runs.run_study(study)
    frame = analysis.load(tmp_path / "results/toy").runs.set_index("width")
    assert frame["status"].to_dict() == {8: "done", 16: "done", 24: "failed", 32: "diverged", 40: "done"}
    results = (tmp_path / "results/toy/runs").rglob("result.json")
    changed = {path.parents[1].name[:5] for path in results if path.stat().st_mtime_ns != before.get(path)}
    assert sorted(changed) == ["w0016", "w0024"]


def test_what_ends_every_lane_before_a_run_is_begun_ends_the_study_with_its_reason(ray_cluster, tmp_path, monkeypatch):
    """Three beginnings of a lane, two lanes for a unit; then its runs are given up and named."""
    handed = work.jobs.with_jobs

    def broken(*args):
        return [replace(unit, jobs=({"spec": {}},)) for unit in handed(*args)]

    monkeypatch.setattr(work.jobs, "with_jobs", broken)
    study = write(tmp_path, grid={"width": [8], "data_fraction": ["1"]}, spectra={"every": "never"}, report=False)
    outcome = runs.run_study(study)
    assert outcome.exit_code == 1
    assert list(outcome.states.values()) == ["missing"]
    (key,) = outcome.states
    lanes = [problem for problem in outcome.problems if problem.startswith("lane-")]
    assert lanes == ["lane-1: KeyError: 'counts'", "lane-2: KeyError: 'counts'"]
    assert f"{key}: KeyError: 'counts'" in outcome.problems
    assert not list((tmp_path / "results/toy").rglob("claim.json"))
    # the cause removed, the same command does what is missing
    monkeypatch.undo()
    assert runs.run_study(study).exit_code == 0


def test_a_node_with_another_source_ends_the_study(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "fingerprint", lambda: "another")
    study = write(tmp_path, grid={"width": [8], "data_fraction": ["1"]}, spectra={"every": "never"}, report=False)
    with pytest.raises(
        InputError, match=r"^code_differs: node .* has another scalespec than the driver; install the same"
    ):
        runs.run_study(study)
    assert not (tmp_path / "results/toy/lease.json").exists()
    assert not list((tmp_path / "results/toy").rglob("claim.json"))


FIRST = {"name": "first", "grid": {"width": [256], "data_fraction": ["1"], "seed": [0, 1]}}
SECOND = {
    "name": "second",
    "grid": {"width": [8, 16], "data_fraction": ["1"], "seed": [0]},
    "optim": {"weight_decay": {"reading": "alpha_median", "of": "first", "times": 0.001}},
}


def test_a_stage_that_reads_spectra_waits_for_them_on_two_cpus(ray_cluster, tmp_path):
    """Both CPUs belong to lanes; those that wait lend theirs, so that what the next stage reads is computed at all."""
    study = write(tmp_path, design=[FIRST, SECOND], spectra={"every": "last"}, report=False)
    outcome = runs.run_study(study)
    folder = tmp_path / "results/toy"
    assert outcome.exit_code == 0, outcome.problems
    assert outcome.problems == []
    first, second = log.read(StudyStore(str(folder)))
    result = analysis.load(folder)
    ends = result.spectra_summary[result.spectra_summary["run_key"].isin([spec.run_key for spec in first.points])]
    read = ReadingValue(float(ends["alpha_median"].median())).times(0.001).value
    assert second.read == {"optim.weight_decay": read}
    assert set(second.seen) == {spec.run_key for spec in first.points}
    assert {spec.optim.weight_decay for spec in second.points} == {read}
    assert set(result.runs["run_key"]) == {spec.run_key for ask in (first, second) for spec in ask.points}
    assert set(result.runs["status"]) == {"done"}
    # the same command asks for nothing
    assert runs.run_study(study).states == outcome.states
    assert len(log.read(StudyStore(str(folder)))) == 2


def test_a_rate_is_tuned_and_its_winner_trained(ray_cluster, tmp_path):
    """Rates far below the best: the bracket walks up until its best lies inside, then the winner's runs are asked for."""
    tune = {"key": "optim.lr", "factor": 4, "count": 3, "rounds": 5, "seed": [7]}
    stage = {"name": "rates", "tune": tune, "grid": {"width": [8], "data_fraction": ["1", "1/2"], "seed": [0, 1]}}
    changes = {"data": {"limit": 1024}, "spectra": {"every": "never"}, "report": False}
    study = write(tmp_path, design=[stage], optim={"lr": 1e-3}, **changes)
    outcome = runs.run_study(study)
    assert outcome.exit_code == 0, outcome.problems
    *probes, last = log.in_force(log.read(StudyStore(str(tmp_path / "results/toy"))))
    assert [ask.role for ask in (*probes, last)] == ["probe"] * len(probes) + ["result"]
    assert len(probes) >= 2, "the first three rates cannot have the best inside"
    result = analysis.load(tmp_path / "results/toy")
    tried = result.runs[result.runs["role"] == "probe"].set_index("lr_base")["val_loss_select"]
    best = tried.idxmin()
    assert min(tried.index) < best < max(tried.index)
    ends = result.runs[result.runs["role"] == "result"]
    assert set(ends["lr_base"]) == {best}
    assert len(ends) == len(last.points) == 4


def test_a_stalled_run_is_ended_with_its_reason(ray_cluster, tmp_path):
    task = {"name": "toy_task:Toy", "sleep_s": 30.0}
    changes = {"grid": {"width": [8], "data_fraction": ["1"]}, "train": {"stall_timeout_s": 1.5}}
    study = write(tmp_path, task=task, spectra={"every": "never"}, report=False, **changes)
    outcome = runs.run_study(study)
    assert list(outcome.states.values()) == ["failed"]
    frame = analysis.load(tmp_path / "results/toy").runs
    assert frame.loc[0, "error"].startswith("stalled: no step for 1.5 s")


def test_two_workers_train_one_run(ray_cluster, tmp_path):
    changes = {"grid": {"width": [8], "data_fraction": ["1"]}, "train": {"workers": 2}}
    study = write(tmp_path, spectra={"every": "never"}, report=False, **changes)
    assert runs.run_study(study).exit_code == 0
    assert analysis.load(tmp_path / "results/toy").runs["workers"].tolist() == [2]


def test_more_workers_than_there_are_cpus_are_refused_at_once(ray_cluster, tmp_path):
    study = write(tmp_path, grid={"width": [8], "data_fraction": ["1"]}, train={"workers": 16})
    with pytest.raises(InputError, match="16 workers need 16 CPUs"):
        runs.run_study(study)


def test_a_second_driver_is_refused(ray_cluster, tmp_path):
    study = write(tmp_path)
    with lease(StudyStore(str(tmp_path / "results/toy"))), pytest.raises(InputError, match=f"process {os.getpid()}"):
        runs.run_study(study)


def test_without_its_tracking_server_the_study_finishes_says_so_and_sync_repairs_it(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = write(
        tmp_path, grid={"width": [8]}, tracking={"uri": "http://127.0.0.1:9"}, spectra={"every": "never"}, report=False
    )
    outcome = runs.run_study(study)
    assert outcome.exit_code == 0
    assert not outcome.tracked
    assert outcome.problems
    uri = f"sqlite:///{tmp_path}/other.db"
    for _ in range(2):  # repeating it changes nothing
        assert conclude.sync_study(str(tmp_path / "results/toy"), uri) == (3, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy")
    everything = client.search_runs([experiment.experiment_id])
    assert len(everything) == 4
    for run in everything:
        for name in run.data.metrics:
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), name


def test_a_killed_study_goes_on_where_it_was(finished, ray_cluster, tmp_path):
    """The driver is interrupted, then killed in the middle; every table equals the uninterrupted study's."""
    whole, _ = finished
    study = write(
        tmp_path, grid={"width": [8, 16, 32], "seed": [0, 1]}, train={"checkpoints": 5, "resume_every_s": 0.05}
    )
    folder = tmp_path / "results/toy"

    def run_until(results: int, end: signal.Signals) -> subprocess.Popen[str]:
        process = run_in_process(study, RAY_ADDRESS="")
        deadline = time.monotonic() + 300
        while len(list(folder.glob("runs/*/e*/result.json"))) < results:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (os.kill if end is signal.SIGINT else os.killpg)(process.pid, end)
        process.wait(100)
        assert results <= len(list(folder.glob("runs/*/e*/result.json"))) < 18
        return process

    interrupted = run_until(2, signal.SIGINT)
    said = interrupted.stdout.read()
    assert interrupted.returncode == 130, said
    assert f"interrupted; what is finished is kept. Continue with: {command('run', study)}" in said
    assert "Traceback" not in said
    assert not (folder / "lease.json").exists()
    run_until(6, signal.SIGKILL)
    outcome = runs.run_study(study)
    assert outcome.exit_code == 0
    ours, theirs = analysis.load(folder), analysis.load(whole)
    for name in ("runs", "curves", "checkpoints", "spectra_summary"):
        pd.testing.assert_frame_equal(
            comparable(getattr(ours, name)), comparable(getattr(theirs, name)), check_exact=True
        )


def test_status_reads_the_disk(finished, capsys):
    folder, _ = finished
    from scalespec.orchestrator.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["status", str(folder), "--json"])
    assert caught.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert {run["state"] for run in found["runs"].values()} == {"done"}


def test_analyze_makes_the_same_tables_again(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "toy")
    shutil.rmtree(tmp_path / "toy/tables")
    conclude.analyze_study(str(tmp_path / "toy"))
    for name in tables.TABLES:
        assert pq.read_table(tmp_path / "toy/tables" / f"{name}.parquet").equals(
            pq.read_table(folder / "tables" / f"{name}.parquet")
        )
