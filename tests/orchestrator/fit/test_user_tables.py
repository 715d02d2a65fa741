"""Anyone's table: what is read from files and from a tracking server, what is refused, and how rows are chosen."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from user_tables import complaint, surface

from scalespec.orchestrator.fit.user_tables import read_table, select, with_values
from scalespec.orchestrator.fit.verb import Columns, points


@pytest.fixture(params=[",", ";", "\t", "|"])
def separator(request) -> str:
    return request.param


def test_any_of_the_usual_separators_will_do(tmp_path, separator):
    path = tmp_path / "t.csv"
    surface().to_csv(path, sep=separator, index=False)
    pd.testing.assert_frame_equal(read_table(str(path)), surface())


def test_one_column_is_one_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("loss\n1.5\n2.5\n")
    assert read_table(str(path))["loss"].tolist() == [1.5, 2.5]


def test_a_byte_order_mark_and_a_zipped_file_are_read(tmp_path):
    surface().to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    surface().to_csv(tmp_path / "t.csv.gz", index=False)
    for name in ("bom.csv", "t.csv.gz"):
        pd.testing.assert_frame_equal(read_table(str(tmp_path / name)), surface())


def test_parquet_is_read_exactly(tmp_path):
    surface().to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_table(str(tmp_path / "t.parquet")), surface(), check_exact=True)


def test_a_study_s_own_table_is_read(tmp_path):
    table = pa.table({"params_matmul": pa.array([1, None]), "val_loss": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "runs.parquet")
    assert read_table(str(tmp_path / "runs.parquet"))["params_matmul"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.csv", b""), ("binary.csv", bytes(range(256))), ("not.parquet", b"PAR1 and no more"), ("ragged.csv", b"a,b\n1,2,3,4\n1\n5,6,7,8,9\n")],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    try:
        message = complaint(read_table, str(path))
    except pytest.fail.Exception:
        # a ragged file may be read; its columns are then refused
        message = complaint(points, read_table(str(path)), Columns("loss", "N", "D"))
    assert name in message or "--loss" in message


def test_a_hostile_parquet_file_is_not_converted(tmp_path):
    storage = pa.array([b"0" * 16], pa.binary(16))
    pq.write_table(pa.table({"x": pa.ExtensionArray.from_storage(pa.uuid(), storage)}), tmp_path / "t.parquet")
    assert "extension type" in complaint(read_table, str(tmp_path / "t.parquet"))


def test_missing_files_and_folders(tmp_path):
    assert complaint(read_table, str(tmp_path / "absent.csv")).endswith("absent.csv: no such file")
    assert "no such file" in complaint(read_table, str(tmp_path))


@pytest.mark.parametrize(
    ("where", "count"),
    [(None, 36), ("seed == 0", 18), ("N > 1e8 and D < 1e10", 16), ("seed in [0, 1]", 36), ("`seed` == 0", 18)],
)
def test_where_keeps_rows(where, count):
    assert len(select(surface(), where)) == count


def test_a_condition_on_what_is_null_does_not_hold():
    frame = pd.DataFrame({"steps": pd.array([1, None, 3], dtype="Int64")})
    assert select(frame, "steps > 1").index.tolist() == [2]
    assert select(frame, "steps != 1").index.tolist() == [2]


@pytest.mark.parametrize(
    "where",
    [
        "nothing > 1",
        "N >",
        "__import__('os').system('true')",
        "@pd",
        "N + 1",
        "seed",
        "'a'",
        "loss.to_csv('x')",
        "loss.map(print) > 0",
    ],
)
def test_a_condition_that_is_none_is_named(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"--where {where}" in complaint(select, surface(), where)
    assert list(tmp_path.iterdir()) == []


# -- a tracking server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """An experiment as a user's own scripts write it: sizes as parameters, the loss as a metric over steps."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("theirs", artifact_location=(folder / "artifacts").as_uri())
    client.create_experiment("empty", artifact_location=(folder / "artifacts").as_uri())
    for at, row in enumerate(surface().to_dict("records")):
        run = client.create_run(experiment, run_name=f"run-{at}")
        for name, value in (("N", int(row["N"])), ("D", int(row["D"])), ("optimizer", "adamw"), ("lr", 0.1)):
            client.log_param(run.info.run_id, name, value)
        for step, loss in enumerate((row["loss"] + 1, row["loss"])):
            client.log_metric(run.info.run_id, "loss", loss, step=step)
        client.log_metric(run.info.run_id, "lr", 0.05)
        client.set_terminated(run.info.run_id, "FINISHED" if at else "FAILED")
    parent = client.create_run(experiment, run_name="sweep")
    client.log_param(parent.info.run_id, "N", 7)
    client.set_terminated(parent.info.run_id)
    return uri


def test_an_experiment_is_a_table_of_its_finished_runs(tracked):
    frame = read_table("mlflow:theirs", tracked)
    assert len(frame) == len(surface())  # one failed, and the parent has finished too
    assert {"run_id", "run_name", "N", "D", "optimizer", "loss", "params.lr", "metrics.lr"} == set(frame)
    kept, left_out = with_values(frame, ["N", "D", "loss"])
    assert left_out == 1
    found = kept.set_index("run_name").sort_index()
    for at, row in surface().iloc[1:].iterrows():
        assert found.loc[f"run-{at}", ["N", "D", "loss"]].tolist() == [int(row["N"]), int(row["D"]), row["loss"]]
    assert select(frame, "optimizer == 'adamw' and N > 1e9")["N"].min() > 1e9


def test_pages_of_an_experiment_are_put_together(tracked, monkeypatch):
    monkeypatch.setattr("scalespec.orchestrator.fit.user_tables.PAGE", 5)
    assert read_table("mlflow:theirs", tracked)["run_id"].nunique() == len(surface())


@pytest.mark.parametrize(
    ("source", "words"),
    [("mlflow:absent", "no such experiment at"), ("mlflow:empty", "the experiment has no finished runs")],
)
def test_an_experiment_that_cannot_be_read_is_one_line(tracked, source, words):
    assert words in complaint(read_table, source, tracked)


def test_a_server_is_needed_and_must_be_there(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "--tracking-uri" in complaint(read_table, "mlflow:theirs", None)
    assert "no such file" in complaint(read_table, "mlflow:theirs", f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "http://127.0.0.1:9" in complaint(read_table, "mlflow:theirs", "http://127.0.0.1:9")


def test_the_environment_names_the_server(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked)
    assert len(read_table("mlflow:theirs")) == len(surface())
