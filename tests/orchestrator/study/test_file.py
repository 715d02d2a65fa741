from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.file import load_study, parse_study, to_yaml
from scalespec.orchestrator.study.numbers import fraction, number
from studies import toy, toy_yaml

ROOT = Path(__file__).parents[3]

GOOD = toy_yaml()


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_study(text, "study.yaml", overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1/2", 0.5),
        ("sqrt(2)", math.sqrt(2)),
        ("2**0.5", math.sqrt(2)),
        ("3*2", 6),
        ("-1", -1),
        ("7", 7),
        ("2**64", 2**64),
    ],
)
def test_numbers_given_as_text(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["__import__('os')", "x", "1e-3 x", "2**999", "sqrt(-1)", "1/0", "open('f')", "True", "", "[1]"]
)
def test_text_that_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="not a number"):
        number(text)


@given(st.fractions(min_value=0, max_value=1))
def test_fractions_stay_exact(value):
    assert fraction(str(value)) == value


def test_decimal_fractions_are_read_as_written():
    assert fraction(0.1) == Fraction(1, 10)


def test_a_study_survives_its_own_yaml():
    study = toy(grid={"dropout": [0.0, 0.1]}, optim={"betas": [0.8, 0.95]})
    assert parse_study(to_yaml(study), "again") == study


@pytest.mark.parametrize("name", ["quickstart", "mnist", "stages"])
def test_the_shipped_studies_are_valid(name):
    assert load_study(ROOT / f"studies/{name}.yaml").name == name


def test_complaints_name_line_and_key():
    lines = GOOD.splitlines()
    at = next(i for i, line in enumerate(lines, 1) if line.strip().startswith("lr:"))
    assert (
        complaint(GOOD.replace("lr: 0.01", "lr: .nan"))
        == f"study.yaml:{at}: optim.lr: must be a finite number, not nan"
    )
    assert complaint(GOOD.replace("  lr:", "  lrr:")).startswith(
        f"study.yaml:{at}: optim.lrr: unknown key; did you mean lr?"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("- 1", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("a: &x 1", "anchors"),
        ("a: &x [1]\nb: [*x, *x]", "anchors"),
        (GOOD + "\nname: again\n", "given twice"),
        (GOOD.replace("name: toy\n", "name: ../escape\n"), "name"),
        (
            GOOD.replace("batch_size: 16\n", "batch_size: 0\n"),
            "batch_size: must be a whole number of at least 1, not 0",
        ),
        (GOOD.replace("  limit: 2048", "  limit: many"), "not a number"),
        (GOOD.replace("name: toy\n", "name: !!python/object/apply:os.system [echo]\n"), "is not allowed"),
        (GOOD.replace("seed:\n  - 0", "seed:\n  - 010"), "grid.seed.0: '010' is not decimal"),
        (GOOD.replace("seed:\n  - 0", "seed:\n  - 1:30"), "'1:30' is not decimal"),
        (GOOD.replace("lr: 0.01", "lr: 1:30.5"), "'1:30.5' is not decimal"),
        (GOOD.replace("lr: 0.01", "lr: true"), "optim.lr: must be a number above 0, not true"),
        (GOOD.replace("lr: 0.01", "lr: 1e99999999"), "optim.lr: must be a finite number"),
        (GOOD.replace("lr: 0.01", "lr: 10**64**9"), "'10**64**9' is not a number"),
        (GOOD.replace("limit: 2048", "limit: 9223372036854775808"), "data.limit: must fit in 64 bits"),
        (GOOD.replace("limit: 2048", f"limit: {'9' * 5000}"), "data.limit: "),
        (GOOD.replace("limit: 2048", "limit: 2020-13-45"), "data.limit: month must be"),
        (GOOD.replace("lr: 0.01", "lr: " + "[" * 5000), "nested too deeply"),
        (GOOD.replace("checkpoints: 5", "workers: fast"), "train.workers: must be auto or a whole number"),
        (GOOD.replace("name: wsd", "name: wsdd"), "schedule.name: must be one of wsd, cosine"),
        (GOOD.replace("    width: 8", "    widt: 8"), "optim.reference.widt: unknown key; did you mean width?"),
        (GOOD + "spectra: 5\n", "spectra: must be a section with keys of its own, not 5"),
        (GOOD + "design: 5\n", "design: must be a list, not 5"),
        (GOOD.replace("name: toy\n", "name: !!python/name:os.system x\n"), "could not determine a constructor"),
    ],
)
def test_bad_files(text, words):
    assert words in complaint(text)


def test_a_file_that_is_too_large_or_absent(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * (1 << 20))
    with pytest.raises(InputError, match="larger than 1 MiB"):
        load_study(large)
    with pytest.raises(InputError, match="No such file"):
        load_study(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_study(tmp_path / "latin.yaml")


def test_overrides():
    study = parse_study(
        GOOD, "study.yaml", ["grid.seed=[3, 4]", "optim.lr=1e-4", "grid.optim.lr=[1e-3]", "task.dropout=0.5"]
    )
    assert study.grid["seed"] == [3, 4]
    assert study.grid["optim.lr"] == ["1e-3"]
    assert study.optim.lr == 1e-4
    assert study.task["dropout"] == 0.5


def test_an_override_is_read_as_the_file_is():
    for override in ("grid.seed=[010]", "grid.seed=[" + "9" * 5000 + "]", "optim.lr=2020-13-45", "optim.lr=&a 1"):
        message = complaint(GOOD, override)
        assert message.startswith("--set ")
        assert len(message) < 300


@pytest.mark.parametrize("override", ["optim.lr", "optim.lr=x", "nothing=1", "optim.lrr=1", "a b=1", "name.x=1"])
def test_bad_overrides_are_named(override):
    assert override in complaint(GOOD, override)
