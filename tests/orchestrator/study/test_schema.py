from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from scalespec.orchestrator import cli
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.file import parse_study, to_yaml
from scalespec.orchestrator.study.reference import markdown
from scalespec.orchestrator.study.schema import json_schema
from studies import toy, toy_yaml

ROOT = Path(__file__).parents[3]
STAGED = """
name: staged
task: {name: gpt, layers: 1}
data: {source: stdlib}
optim: {lr: 4.0e-3, batch_size: 8, reference: {width: 32, batch_size: 8}}
design:
  - {name: ramp, grid: {width: [32]}, schedule: {name: ramp}, optim: {lr: 1.0}}
  - {name: found, tune: {rounds: 2, seed: 3}, grid: {width: [32], optim.batch_rule: [sqrt, none]}, optim: {lr: {reading: onset_lr, of: ramp, times: 0.5}}}
"""


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def said(validator, text: str) -> list[str]:
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_studies_fit_the_schema(validator, path):
    assert said(validator, path.read_text()) == []


@pytest.mark.parametrize(
    "text", [toy_yaml(), STAGED, toy_yaml(grid={"width": {"start": 8, "factor": "sqrt(2)", "count": 3}})]
)
def test_what_the_checks_take_fits_the_schema_as_written_and_filled_in(validator, text):
    assert said(validator, text) == []
    assert said(validator, to_yaml(parse_study(text, "study.yaml"))) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optim", "lr", 0),
        ("optim", "lr", "much"),
        ("optim", "lrr", 1),
        ("optim", "batch_size", 1.5),
        ("optim", "name", "adamm"),
        ("optim", "betas", [0.9]),
        ("train", "workers", "fast"),
        ("train", "reuse_trunk", 1),
        ("schedule", "cooldown", 1),
        ("spectra", "every", "week"),
        ("data", "limit", 0),
        ("grid", "data_fraction", [2]),
        ("grid", "optim.lr", [-1]),
        ("grid", "optim.reference", [1]),
        ("grid", "train.workers", [1, 2]),
        ("resources", "cpus_per_worker", 0),
    ],
)
def test_schema_and_checks_refuse_the_same(validator, section, key, value):
    raw = yaml.safe_load(toy_yaml())
    raw.setdefault(section, {})[key] = value
    assert said(validator, yaml.safe_dump(raw))
    if section != "grid":  # axes are checked where the task is known
        with pytest.raises(InputError, match=key):
            parse_study(yaml.safe_dump(raw), "study.yaml")


def test_options_of_built_in_tasks_are_in_it(validator):
    study = yaml.safe_load((ROOT / "studies" / "quickstart.yaml").read_text())
    for option, fits in (({"layers": 3}, True), ({"layers": 0}, False), ({"depth": 3}, False)):
        text = yaml.safe_dump(study | {"task": {"name": "gpt", **option}})
        assert (said(validator, text) == []) is fits, option


def test_grid_or_design(validator):
    both = yaml.safe_load(STAGED) | {"grid": {"width": [8]}}
    assert said(validator, yaml.safe_dump(both))
    neither = {key: value for key, value in yaml.safe_load(STAGED).items() if key != "design"}
    assert said(validator, yaml.safe_dump(neither))


def test_the_verb_prints_it(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["schema"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_reference_page_is_current():
    page = ROOT / "docs" / "reference" / "keys.md"
    assert page.read_text(encoding="utf-8") == markdown(), "`make docs` writes it"


def test_the_defaults_in_the_schema_are_those_of_a_study(validator):
    schema, filled = json_schema(), yaml.safe_load(to_yaml(toy()))
    for section in ("spectra", "resources", "tracking"):
        for key, told in schema["properties"][section]["properties"].items():
            assert told.get("default") == filled[section][key], (section, key)
