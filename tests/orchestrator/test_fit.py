"""`scalespec fit` on anyone's table: what is read, what is refused, and what comes out of an exact surface."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import InputError
from orchestrator.fit import Columns, certify, points, read_table, select, write

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""The published law (https://arxiv.org/abs/2203.15556, eq. 10)."""


def surface() -> pd.DataFrame:
    """The law without noise, on a grid of sizes and data."""
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 1e11, 6)))
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    return pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "loss": loss, "seed": np.arange(len(n)) % 2})


@pytest.fixture(params=[",", ";", "\t", "|"])
def separator(request) -> str:
    return request.param


def complaint(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        (Columns("loss", "N", "D", "C"), "N, D and C as given"),
    ],
)
def test_the_third_follows_from_two(columns, words):
    data, said = points(surface(), columns)
    assert said == words
    for name, column in (("n", "N"), ("d", "D"), ("c", "C"), ("loss", "loss")):
        assert data[name].to_numpy() == pytest.approx(surface()[column].to_numpy())


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


def test_the_law_is_written_as_json(tmp_path):
    data, _ = points(surface(), Columns("loss", "N", "D"))
    law = certify(data, resamples=5)
    write(law, str(tmp_path / "law.json"))
    assert json.loads((tmp_path / "law.json").read_text()) == law.to_json()
    assert "--out" in complaint(write, law, str(tmp_path / "absent" / "law.json"))
