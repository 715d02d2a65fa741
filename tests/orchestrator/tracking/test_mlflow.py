"""MLflow as a view of the disk, on real SQLite stores: nothing twice, nothing lost, nothing raised into the study."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from counted import Counted
from mlflow import MlflowClient
from tracked import SMALL, client_of, complete, law, points_of, runs_of, summary_of, tracker_of
from trained import Trained, result_path, trained

from scalespec.orchestrator import version
from scalespec.orchestrator.store import folder
from scalespec.orchestrator.store.folder import ParquetCodec, StudyStore
from scalespec.orchestrator.store.run_tables import curves_table
from scalespec.orchestrator.tracking.mlflow import (
    PARENT,
    SUMMARY_METRICS,
    Target,
    Tracker,
    is_local_disk,
    params_of,
    source_tags,
    target_of,
)
from scalespec.orchestrator.tracking.recorder import Recorder
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.history import MANIFEST, STATE, step_folder
from scalespec.trainables.io import State
from scalespec.trainables.keys import keys_of


def everything(client: MlflowClient) -> dict[str, Any]:
    """All that a study has in MLflow, comparable."""
    parents, children = runs_of(client)
    return {
        run.info.run_id: (sorted(points_of(client, run)), dict(run.data.params), run.info.status, run.info.start_time)
        for run in parents + children
    }


def test_a_study_is_one_parent_with_a_child_for_each_run(study):
    tracker_of(study).record(study.specs)
    parents, children = runs_of(client_of(study))
    (parent,) = parents
    assert parent.data.tags["scalespec.root"] == study.store.root
    assert {run.data.tags["run_key"] for run in children} == {spec.run_key for spec in study.specs}
    for run in children:
        spec = next(spec for spec in study.specs if spec.run_key == run.data.tags["run_key"])
        assert run.data.tags[PARENT] == parent.info.run_id
        assert run.data.tags["axis.data_fraction"] == str(spec.data_fraction)
        assert run.data.tags["family_key"] == spec.family_key
        assert run.info.run_name == spec.run_key
        assert run.info.status == "FINISHED"
        assert run.data.params["width"] == "8"
        assert run.data.params["optim.batch_size"] == "16"
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.digest == spec.data_identity[:36]
    written = study.store.read_json("mlflow.json")
    assert written["parent"] == parent.info.run_id
    assert written["runs"] == {run.data.tags["run_key"]: run.info.run_id for run in children}


def test_the_points_are_those_of_the_curves_at_the_times_they_were_logged(study):
    tracker_of(study).record(study.specs)
    client = client_of(study)
    rows = curves_table(study.store, study.specs).to_pylist()
    for run in runs_of(client)[1]:
        key = run.data.tags["run_key"]
        curve = {(r["metric"], r["step"]): r["value"] for r in rows if r["run_key"] == key}
        sent = {(name, step): value for name, step, value in points_of(client, run)}
        result = study.store.run(key).result()
        assert sent.items() >= curve.items()
        further = {name: value for (name, step), value in sent.items() if (name, step) not in curve}
        assert set(further) == {"final/val_loss", "final/val_loss_se", "final/val_accuracy", "N", "D", "C"}
        assert further["final/val_loss"] == result["val_loss"]
        assert (further["N"], further["D"], further["C"]) == (
            result["params_matmul"],
            result["samples"],
            result["flops_train"],
        )
        logged = {(r["metric"], r["step"]): r["time_ms"] for r in study.store.run(key).metrics()}
        for point in client.get_metric_history(run.info.run_id, "train_loss"):
            assert point.timestamp == logged["train_loss", point.step]
        assert run.info.start_time == int(result["started_at"] * 1000)
        assert run.info.end_time == int((result["started_at"] + result["duration_s"]) * 1000)


def test_repeating_it_changes_nothing(study):
    first = tracker_of(study)
    first.record(study.specs)
    client = client_of(study)
    before = everything(client)
    first.record(study.specs)
    for _ in range(2):  # drivers that start anew
        tracker_of(study).record(study.specs)
    assert everything(client) == before
    for points, *_ in before.values():
        assert max(Counter((name, step) for name, step, _ in points).values(), default=1) == 1


def test_a_whole_study_repeated_has_every_point_once(study):
    study.store.write_json("laws.json", [law(alpha=0.3)])
    study.store.files.write("report/index.html", b"<p>report</p>")
    complete(study, [law(alpha=0.3)])
    client = client_of(study)
    before = everything(client)
    time.sleep(0.01)
    complete(study, [law(alpha=0.3)])
    assert everything(client) == before
    (parent,) = runs_of(client)[0]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"law/chinchilla/alpha": 0.3}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"study.yaml", "laws.json", "report"}
    assert (Path(study.store.root) / "mlartifacts").is_dir()


def test_a_law_that_changed_is_the_latest_value(study):
    complete(study, [law(alpha=0.3, beta=0.2)])
    complete(study, [law(alpha=0.4, beta=0.2)])
    client = client_of(study)
    (parent,) = runs_of(client)[0]
    assert parent.data.metrics == {"law/chinchilla/alpha": 0.4, "law/chinchilla/beta": 0.2}
    points = points_of(client, parent)
    assert len({(name, step) for name, step, _ in points}) == len(points) == 3


def test_laws_of_several_settings_have_names_that_mlflow_accepts(study):
    laws = [law("chinchilla/dropout=0.2,optim.name=adam", alpha=0.3), law("best(N) [C]", a=0.5)]
    complete(study, laws)
    (parent,) = runs_of(client_of(study))[0]
    assert sorted(parent.data.metrics.values()) == [0.3, 0.5]


def test_no_run_has_more_than_forty_metrics(study):
    complete(study, [])
    for run in runs_of(client_of(study))[1]:
        assert {f"spectra/{name}" for name in SUMMARY_METRICS} <= set(run.data.metrics)
        assert 20 <= len(run.data.metrics) <= 40


def test_spectra_stand_at_the_steps_of_the_checkpoints(study):
    complete(study, [])
    client = client_of(study)
    for run in runs_of(client)[1]:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "spectra/alpha_median")]
        assert sorted(steps) == study.store.run(run.data.tags["run_key"]).checkpoint_steps()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_sent(study, value):
    key = study.specs[0].run_key
    folder = study.store.run(key)
    rows = [
        {"step": s, "samples": 16 * s, "flops": 1.0, "metric": "odd", "value": v, "time_ms": s}
        for s, v in ((3, value), (4, 4.0))
    ]
    path = f"{result_path(study.store, key).rpartition('/')[0]}/metrics/part-00000004.parquet"
    study.store.files.write(path, ParquetCodec().encode_metrics(rows))
    result = {**folder.result(), "val_loss_se": value}
    study.store.files.write(result_path(study.store, key), json.dumps(result).encode())
    recorder = Recorder(tracker_of(study), study.specs)
    summary = [{**row, "alpha_median": value} for row in summary_of(study)]
    assert recorder.complete(summary, [law(alpha=value, beta=None, E=1.7)], status="FINISHED"), recorder.problem
    client = client_of(study)
    parents, children = runs_of(client)
    for run in parents + children:
        values = [v for _, _, v in points_of(client, run)]
        assert all(abs(v) < 1e300 and math.isfinite(v) for v in values)
        assert "spectra/alpha_median" not in run.data.metrics
    assert parents[0].data.metrics == {"law/chinchilla/E": 1.7}
    (odd,) = [run for run in children if run.data.tags["run_key"] == key]
    assert [m.step for m in client.get_metric_history(odd.info.run_id, "odd")] == [4]
    assert "final/val_loss_se" not in odd.data.metrics


def test_failed_and_diverged_runs_say_so(study):
    first, second = study.specs
    for spec, status, error in ((first, "failed", "oom: too large"), (second, "diverged", "non_finite: at step 3")):
        result = {**study.store.run(spec.run_key).result(), "status": status, "error": error, "val_loss": None}
        study.store.files.write(result_path(study.store, spec.run_key), json.dumps(result).encode())
    tracker_of(study).record(study.specs)
    by_key = {run.data.tags["run_key"]: run for run in runs_of(client_of(study))[1]}
    assert (by_key[first.run_key].info.status, by_key[second.run_key].info.status) == ("FAILED", "FINISHED")
    assert by_key[first.run_key].data.tags["scalespec.status"] == "failed"
    assert by_key[first.run_key].data.tags["scalespec.error"] == "oom: too large"
    assert by_key[second.run_key].data.tags["scalespec.status"] == "diverged"
    assert "final/val_loss" not in by_key[second.run_key].data.metrics


def test_a_failed_run_that_was_mended_bears_no_trace_of_the_failure(study):
    spec = study.specs[0]
    path = result_path(study.store, spec.run_key)
    good = study.store.files.read(path)
    bad = {**json.loads(good), "status": "failed", "error": "oom: too large", "steps": 0}
    study.store.files.write(path, json.dumps(bad).encode())
    tracker_of(study).record(study.specs)
    study.store.files.write(path, good)
    tracker_of(study).record(study.specs)
    (run,) = [run for run in runs_of(client_of(study))[1] if run.data.tags["run_key"] == spec.run_key]
    assert (run.info.status, run.data.tags["scalespec.status"]) == ("FINISHED", "done")
    assert "scalespec.error" not in run.data.tags


# -- a run that is under way --------------------------------------------------------------------------------------------


def part(folder: RunFolder, step: int) -> None:
    folder.log(step, 16 * step, 1.0 * step, {"train_loss": 1.0 / step})


def state(step: int) -> State:
    return State(step, {}, {})


def test_parts_count_when_their_state_is_committed(tmp_path):
    folder = RunFolder(LocalFiles(tmp_path), "run", ParquetCodec())
    names = [f"run/e000001/metrics/part-{step:08d}.parquet" for step in (2, 4, 6)]

    def settled() -> list[str]:
        return list(RunFolder(folder.files, "run").history().settled_parts)

    assert settled() == []
    for step in (2, 4):
        part(folder, step)
        folder.save_state(state(step))
    assert settled() == names[:2]
    # the metrics of the next state are written, the state itself is not complete yet
    part(folder, 6)
    folder._commit_metrics(6)
    assert settled() == names[:2]
    folder.files.write(f"{folder.path}/resume/{step_folder(6)}/{STATE}", b"half")
    assert settled() == names[:2]
    folder.files.write(f"{folder.path}/resume/{step_folder(6)}/{MANIFEST}", b"{}")
    assert settled() == names
    # the end of a run takes its states away
    folder.files.delete(f"{folder.path}/resume")
    assert settled() == []
    folder.finish({"steps": 6, "status": "done"}, None)
    assert settled() == names
    # what a newer attempt took over is settled, whatever becomes of it
    newer = RunFolder(folder.files, "run", ParquetCodec())
    newer.claim("next")
    assert settled() == []


def test_a_run_under_way_shows_what_a_resume_cannot_take_back(study):
    spec = study.specs[0]
    key, files = spec.run_key, study.store.files
    result = json.loads(files.read(result_path(study.store, key)))
    files.delete(f"runs/{key}")
    folder = study.store.run(key)
    folder.claim("now")
    tracker = tracker_of(study)
    tracker.record([spec])
    client = client_of(study)
    (run,) = runs_of(client)[1]
    assert (run.info.status, points_of(client, run)) == ("RUNNING", [])
    part(folder, 2)
    folder.save_state(state(2))
    part(folder, 4)
    folder._commit_metrics(4)
    tracker.record([spec])
    assert [point[:2] for point in points_of(client, client.get_run(run.info.run_id))] == [("train_loss", 2)]
    folder = study.store.run(key)  # the worker died before its state was complete; the next attempt logs step 4 anew
    folder.claim("now")
    part(folder, 4)
    folder.save_state(state(4))
    tracker_of(study).record([spec])
    folder.finish(result, None)
    tracker_of(study).record([spec])
    (run,) = runs_of(client)[1]
    assert run.info.status == "FINISHED"
    losses = [point for point in points_of(client, run) if point[0] == "train_loss"]
    assert sorted(losses) == [("train_loss", 2, 0.5), ("train_loss", 4, 0.25)]


def test_a_run_that_has_not_begun_is_not_in_mlflow(study):
    study.store.files.delete(f"runs/{study.specs[0].run_key}")
    tracker_of(study).record(study.specs)
    assert [run.data.tags["run_key"] for run in runs_of(client_of(study))[1]] == [study.specs[1].run_key]


# -- what is sent ---------------------------------------------------------------------------------------------------------


def test_parameters_are_the_keys_that_can_change_a_run(study):
    spec = study.specs[0]
    params = params_of(spec)
    for section in ("optim", "schedule", "train"):
        config = getattr(spec, section)
        for key in keys_of(type(config)).values():
            known = key.hashed and not key.is_section
            assert (f"{section}.{key.name}" in params) is known, key.name
            assert not known or params[f"{section}.{key.name}"] == getattr(config, key.name)
    assert params["optim.reference.width"] == spec.optim.reference.width
    assert "data.path" not in params


def test_a_study_that_is_whole_in_mlflow_costs_a_look_at_each_result(study):
    complete(study, [law(alpha=0.3)])
    tracker = tracker_of(study)
    files = study.store.__dict__["files"] = Counted(study.store.files)
    tracker.open()
    tracker.client.log_batch = tracker.client.get_metric_history = None
    tracker.record(study.specs)
    assert files.calls == {"names": 2, "read": 2, "write": 1}


# -- where ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "local"),
    [("ext4", True), ("xfs", True), ("apfs", True), ("overlay", True), ("tmpfs", True), ("", True)]
    + [(kind, False) for kind in ("nfs4", "NFS", "cifs", "smbfs", "lustre", "gpfs", "fuse.s3fs", "9p", "ceph")],
)
def test_sqlite_is_for_local_disks_only(tmp_path, monkeypatch, kind, local):
    mounts = [SimpleNamespace(mountpoint="/", fstype="nfs" if local else "ext4")]
    mounts.append(SimpleNamespace(mountpoint=str(tmp_path), fstype=kind))
    # a neighbour whose name begins alike is another disk
    mounts.append(SimpleNamespace(mountpoint=f"{tmp_path}/toy2", fstype="ext4" if not local else "nfs"))
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert is_local_disk(f"{tmp_path}/toy") is local
    target = target_of(StudyStore(f"{tmp_path}/toy"), None)
    assert (target is not None) is local
    assert target_of(StudyStore(f"{tmp_path}/toy"), "http://server") == Target("http://server")


def test_a_study_behind_a_uri_has_no_store_of_its_own(monkeypatch):
    monkeypatch.setattr(folder, "open_files", lambda root: Counted(LocalFiles(root)))
    assert target_of(StudyStore("s3://bucket/toy"), "http://server") == Target("http://server")
    assert target_of(StudyStore("s3://bucket/toy"), None) is None


def test_a_store_whose_making_was_cut_short_is_made_anew(done, tmp_path, monkeypatch):
    """MLflow cannot go on with tables half made: who is killed while they are made must leave no store behind."""
    shutil.copytree(done.store.root, tmp_path / "toy")
    study = Trained(done.study, done.grid, StudyStore(str(tmp_path / "toy")))
    with monkeypatch.context() as cut:
        cut.setattr("os.replace", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tracker_of(study).open()
    assert not (tmp_path / "toy/mlflow.db").exists()
    (tmp_path / "toy/mlflow.db.0.new-journal").write_bytes(b"of half a store")
    tracker_of(study).record(study.specs)
    assert len(runs_of(client_of(study))[1]) == len(study.specs)
    assert not list((tmp_path / "toy").glob("mlflow.db.*"))


@pytest.mark.parametrize("name", ["with a space", "hash#1", "umlaut-ü", "ten%"])
def test_any_folder_name_will_do(done, tmp_path, empty_database, name):
    root = tmp_path / name / "toy"
    shutil.copytree(done.store.root, root)
    shutil.copy(empty_database, root / "mlflow.db")
    study = Trained(done.study, done.grid, StudyStore(str(root)))
    before = sorted(path.name for path in tmp_path.iterdir())
    complete(study, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    tracker = tracker_of(study)
    tracker.open()
    assert set(tracker.run_ids) == {spec.run_key for spec in study.specs}


def test_studies_on_one_server_do_not_mix(study, tmp_path):
    other = trained(tmp_path / "other", name="other", **SMALL)
    uri = f"sqlite:///{study.store.root}/mlflow.db"
    for each in (study, other):
        Tracker(each.store, Target(uri), each.study.name).record(each.specs)
    client = MlflowClient(uri)
    for name in ("toy", "other"):
        parents, children = runs_of(client, name)
        assert (len(parents), len(children)) == (1, 2)


def test_the_commit_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALESPEC_GIT_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert version.git_commit() is None
    assert "mlflow.source.git.commit" not in source_tags()
    monkeypatch.setenv("SCALESPEC_GIT_COMMIT", "abc")
    assert source_tags()["mlflow.source.git.commit"] == "abc"
    monkeypatch.setenv("PATH", "")  # without git
    assert version.git_commit() is None


def test_the_commit_of_a_repository(tmp_path, monkeypatch):
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.chdir(tmp_path)
    assert len(version.git_commit() or "") == 40
