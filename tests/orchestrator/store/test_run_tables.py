"""Tables hold what is committed, of exactly the runs of the study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from trained import Trained, prepared, result_path, trained

from scalespec.analysis import tables
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.run_tables import axis_columns, checkpoints_table, curves_table, runs_table, status_of
from studies import toy_grid

AXES = {
    "grid": {"width": [8], "data_fraction": ["1", "1/2"], "dropout": [0.0, 0.5], "optim.lr": [0.01, 0.02]},
    "data": {"limit": 256},
    "train": {"checkpoints": 3},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Trained:
    """A finished study with two further axes; not to be changed."""
    return trained(tmp_path_factory.mktemp("collect") / "toy", **AXES)


@pytest.fixture
def study(done, tmp_path) -> Trained:
    """A copy to do harm to."""
    shutil.copytree(done.store.root, tmp_path / "toy")
    return Trained(done.study, done.grid, StudyStore(str(tmp_path / "toy")))


def test_a_row_for_every_run_with_its_axes_and_results(done):
    table = runs_table(done.store, done.specs, {done.specs[0].run_key: "abc"}, None)
    rows = {row["run_key"]: row for row in table.to_pylist()}
    assert set(rows) == {spec.run_key for spec in done.specs}
    assert len(rows) == 8
    for spec in done.specs:
        row, result = rows[spec.run_key], done.store.run(spec.run_key).result()
        assert (row["width"], row["data_fraction"], row["seed"]) == (8, float(spec.data_fraction), 0)
        assert row["dropout"] == spec.axes["dropout"]
        assert row["lr_base"] == spec.axes["optim.lr"] == spec.optim.lr
        assert row["val_loss"] == result["val_loss"] > 0
        assert row["steps"] * row["batch_size"] == row["samples"] == int(256 * spec.data_fraction)
        assert row["family_key"] == spec.family_key
        assert row["started_at"].timestamp() == pytest.approx(result["started_at"], abs=0.001)
        assert row["cost_usd"] is None
    assert rows[done.specs[0].run_key]["mlflow_run_id"] == "abc"
    assert rows[done.specs[1].run_key]["mlflow_run_id"] is None


def test_the_schema_is_the_contracts_with_the_axes_after_the_seed(done):
    table = runs_table(done.store, done.specs, {}, None)
    # optim.lr is lr_base already and gets no second column
    assert table.schema.equals(tables.with_axes(tables.RUNS, {"dropout": pa.float64()}), check_metadata=True)
    assert table.column_names[table.column_names.index("seed") + 1] == "dropout"
    assert curves_table(done.store, done.specs).schema == tables.CURVES
    assert checkpoints_table(done.store, done.specs).schema == tables.CHECKPOINTS


def test_money_is_the_marginal_time_at_the_price(done):
    rows = runs_table(done.store, done.specs, {}, 7.2).to_pylist()
    for row in rows:
        assert row["cost_usd"] == pytest.approx(0.002 * row["duration_s"])
        assert row["cost_usd"] > 0


def test_curves_are_the_committed_points_once_each(done):
    table = curves_table(done.store, done.specs)
    keys = list(zip(*(table[name].to_pylist() for name in tables.KEYS["curves"]), strict=True))
    assert len(set(keys)) == len(keys)
    for spec in done.specs:
        folder = done.store.run(spec.run_key)
        rows = [row for row in table.to_pylist() if row["run_key"] == spec.run_key]
        assert len(rows) == len(folder.metrics())
        steps = {row["step"] for row in rows if row["metric"] == "val_loss"}
        assert steps == set(folder.checkpoint_steps())
        for row in rows:
            assert row["samples"] == 16 * row["step"]
            assert row["flops"] == pytest.approx(row["step"] * 16 * done.grid.of(spec).counts(8).flops_train)


def test_checkpoints_are_listed_with_the_hash_of_their_file(done):
    rows = checkpoints_table(done.store, done.specs).to_pylist()
    assert {row["run_key"] for row in rows} == {spec.run_key for spec in done.specs}
    for row in rows:
        data = done.store.files.read(row["path"])
        assert row["bytes"] == len(data)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["val_loss"] > 0
    last = {row["run_key"]: row["step"] for row in sorted(rows, key=lambda row: row["step"])}
    assert last == {spec.run_key: done.store.run(spec.run_key).result()["steps"] for spec in done.specs}


def test_the_last_checkpoint_has_the_loss_of_the_result(done):
    rows = checkpoints_table(done.store, done.specs).to_pylist()
    for spec in done.specs:
        result = done.store.run(spec.run_key).result()
        (found,) = (r["val_loss"] for r in rows if (r["run_key"], r["step"]) == (spec.run_key, result["steps"]))
        assert found == pytest.approx(result["val_loss"], rel=1e-12)


def test_the_trunk_is_one_content_in_its_whole_family(done):
    rows = checkpoints_table(done.store, done.specs).to_pylist()
    for family in done.grid.families().values():
        keys = [spec.run_key for spec in family]
        first = {row["sha256"] for row in rows if row["run_key"] in keys and row["step"] == 0}
        assert len(first) == 1


def test_a_run_without_a_result_is_in_no_table_but_its_checkpoints_are(study):
    gone = study.specs[0].run_key
    study.store.files.delete(result_path(study.store, gone))
    assert gone not in runs_table(study.store, study.specs, {}, None)["run_key"].to_pylist()
    assert gone not in curves_table(study.store, study.specs)["run_key"].to_pylist()
    assert gone in checkpoints_table(study.store, study.specs)["run_key"].to_pylist()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"step": 1}', b"[]", b'"x"'])
def test_a_checkpoint_whose_manifest_is_damaged_is_left_out(study, damage):
    before = checkpoints_table(study.store, study.specs)
    folder = before["path"][0].as_py().rpartition("/")[0]
    study.store.files.write(f"{folder}/manifest.json", damage)
    after = checkpoints_table(study.store, study.specs)
    assert after.equals(before.slice(1))


def test_of_a_study_that_shrank_only_its_own_runs_are_shown(study):
    kept = study.specs[:3]
    assert runs_table(study.store, kept, {}, None)["run_key"].to_pylist() == [spec.run_key for spec in kept]
    assert status_of(study.store, kept)["other_runs"] == 5


def test_an_empty_study_has_empty_tables_of_the_right_shape(tmp_path):
    empty = prepared(tmp_path / "toy", **AXES)
    assert runs_table(empty.store, empty.specs, {}, None).num_rows == 0
    assert curves_table(empty.store, empty.specs).schema == tables.CURVES
    assert checkpoints_table(empty.store, empty.specs).num_rows == 0
    found = status_of(empty.store, empty.specs)
    assert {run["state"] for run in found["runs"].values()} == {"missing"}


def test_status_tells_the_five_states_apart(study):
    first, second, third, fourth = study.specs[:4]
    files = study.store.files
    files.write(result_path(study.store, first.run_key), b'{"status": "failed", "error": "oom: too large"}')
    files.write(result_path(study.store, second.run_key), b'{"status": "diverged", "error": "non_finite: loss"}')
    for spec, session in ((third, "now"), (fourth, "yesterday")):
        files.delete(result_path(study.store, spec.run_key))
        study.store.run(spec.run_key).claim(session)
    files.write("lease.json", json.dumps({"session": "now"}).encode())
    found = status_of(study.store, study.specs)["runs"]
    assert [run["state"] for run in found.values()] == ["failed", "diverged", "running", "missing", *["done"] * 4]
    assert found[first.run_key]["error"] == "oom: too large"
    assert found[first.run_key]["optim.lr"] == first.axes["optim.lr"]
    # without its driver nothing runs any more
    files.delete("lease.json")
    assert status_of(study.store, study.specs)["runs"][third.run_key]["state"] == "missing"


@pytest.mark.parametrize(
    ("axis", "values", "kind"),
    [
        ("dropout", [0.0, 0.5], pa.float64()),
        ("dropout", [0, 0.5], pa.float64()),
        ("kill_step", [1, 2], pa.int64()),
        ("kill_file", ["a", "b"], pa.string()),
        ("slow", [True, False], pa.bool_()),
        ("schedule.name", ["wsd", "constant"], pa.string()),
        ("optim.grad_clip", [None, 1.0], pa.float64()),
        ("optim.batch_rule", ["sqrt", "none"], pa.string()),
        ("train.precision", ["fp32"], None),  # a column already
    ],
)
def test_an_axis_has_the_type_of_its_values(axis, values, kind):
    grid = toy_grid(grid={"width": [8], "data_fraction": ["1"], axis: values})
    assert axis_columns(grid.runs) == ({} if kind is None else {axis.rpartition(".")[2]: kind})


def test_two_axes_with_one_leaf_name_do_not_hide_each_other(tmp_path):
    changes = {**AXES, "grid": {"width": [8], "data_fraction": ["1"], "optim.name": ["adam", "sgd"]}}
    changes["grid"]["schedule.name"] = ["wsd", "constant"]
    study = trained(tmp_path / "toy", **changes)
    rows = runs_table(study.store, study.specs, {}, None).to_pylist()
    found = {(row["optim.name"], row["schedule.name"]) for row in rows}
    assert found == {(optimizer, schedule) for optimizer in ("adam", "sgd") for schedule in ("wsd", "constant")}
    assert found == {(row["optimizer"], row["schedule"]) for row in rows}


def test_an_axis_of_one_stage_has_its_value_in_the_runs_of_all(done):
    """A run whose own grid does not vary a key has it all the same: laws would take an empty cell for a setting of its own."""
    mixed = [dataclasses.replace(spec, axes={}) if at % 2 else spec for at, spec in enumerate(done.specs)]
    assert runs_table(done.store, mixed).equals(runs_table(done.store, done.specs))


def test_reading_takes_nothing_but_what_is_committed(study):
    root = Path(study.store.root)

    def read() -> list[pa.Table]:
        pair = (study.store, study.specs)
        return [runs_table(*pair, {}, None), curves_table(*pair), checkpoints_table(*pair)]

    before = read()
    run = (root / result_path(study.store, study.specs[0].run_key)).parent
    (run / "checkpoints/step-00009999").mkdir()
    (run / "checkpoints/step-00009999/model.safetensors").write_bytes(b"half")
    (run / "metrics/.tmp-x").write_bytes(b"half")
    (run / ".tmp-y").write_bytes(b"half")
    assert read() == before
    assert status_of(study.store, study.specs)["other_runs"] == 0
