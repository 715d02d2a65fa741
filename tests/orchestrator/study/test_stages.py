from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import pytest
import yaml

from scalespec.analysis.readings import ReadingValue
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.file import definition, parse_study, stage_study, to_yaml
from scalespec.orchestrator.study.grid import expand
from studies import TOY, toy

RAMP = {"name": "ramp", "grid": {"width": [8]}, "schedule": {"name": "ramp"}, "optim": {"lr": 1.0}}
SMALL = {
    "name": "small",
    "role": "result",
    "grid": {"width": [8], "seed": [0, 1]},
    "optim": {"lr": {"reading": "onset_lr", "of": "ramp", "times": 0.5}},
}
LARGE = {
    "name": "large",
    "grid": {"width": [8, 16], "optim.batch_rule": ["sqrt", "none"]},
    "optim": {"lr": {"reading": "lr", "of": "small"}, "batch_size": 32},
    "task": {"dropout": 0.1},
}


def text(*stages, **changes) -> str:
    base = {key: value for key, value in TOY.items() if key != "grid"}
    whole = json.loads(json.dumps({**base, "design": list(stages), **changes}))  # no object twice, so no anchors
    return yaml.safe_dump(whole, sort_keys=False)


def staged(*stages, **changes):
    return parse_study(text(*stages, **changes), "study.yaml")


def complaint(*stages, **changes) -> str:
    with pytest.raises(InputError) as caught:
        staged(*stages, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_grid_is_one_stage_of_that_name():
    (stage,) = toy().stages
    assert (stage.name, stage.role, stage.kind, stage.readings) == ("grid", "result", "grid", ())
    assert stage_study(toy(), stage, {}) == toy()


def test_stages_as_written():
    ramp, small, large = staged(RAMP, SMALL, LARGE).stages
    assert [stage.role for stage in (ramp, small, large)] == ["probe", "result", "result"]
    assert dict(ramp.overrides) == {"optim.lr": 1.0, "schedule.name": "ramp"}
    assert small.readings == (("optim.lr", "onset_lr", "ramp", 0.5),)
    assert dict(large.overrides) == {"task.dropout": 0.1, "optim.batch_size": 32}


def test_a_study_in_stages_survives_its_own_yaml():
    tuned = {"name": "tuned", "tune": {"seed": 3, "data_fraction": ["1", "1/2"]}, "grid": {"width": [8]}}
    nested = {**RAMP, "optim": {"reference": {"width": 16}}}
    for stages in ((RAMP, SMALL, LARGE), (tuned,), (nested, {**SMALL, "name": "last"})):
        study = staged(*stages)
        again = parse_study(to_yaml(study), "again")
        assert again == study
        assert [definition(a) for a in again.stages] == [definition(b) for b in study.stages]


def test_the_plain_study_of_a_stage():
    study = staged(RAMP, SMALL, LARGE)
    ramp, small, large = study.stages
    plain = stage_study(study, ramp, {})
    assert (plain.optim.lr, plain.schedule.name, plain.schedule.cooldown) == (1.0, "ramp", study.schedule.cooldown)
    assert plain.optim.reference == study.optim.reference
    assert len(expand(plain).runs) == 1

    plain = stage_study(study, large, {"optim.lr": ReadingValue(0.02, 16, 8)})
    assert dataclasses.astuple(plain.optim.reference) == (16, 8)  # where the rate was read
    assert (plain.optim.lr, plain.optim.batch_size, plain.task["dropout"]) == (0.02, 32, 0.1)
    assert len(expand(plain).runs) == 4
    assert stage_study(study, small, {"optim.lr": ReadingValue(0.5, 8, 16).times(0.5)}).optim.lr == 0.25


def test_a_stage_of_the_plain_study_is_that_study():
    study = staged(RAMP, SMALL)
    plain = stage_study(study, study.stages[0], {})
    assert stage_study(plain, plain.stages[0], {}) == plain


def test_a_value_that_cannot_be_is_named():
    study = staged(
        {"name": "a", "grid": {"width": [8]}},
        {**SMALL, "optim": {}, "schedule": {"cooldown": {"reading": "alpha_median", "of": "a"}}},
    )
    with pytest.raises(InputError, match=r"stage small: schedule.cooldown: must be .* below 1, not 2.3"):
        stage_study(study, study.stages[1], {"schedule.cooldown": ReadingValue(2.3)})
    found = stage_study(study, study.stages[1], {"schedule.cooldown": ReadingValue(0.3)})
    assert found.optim.reference == study.optim.reference


def test_a_whole_number_can_be_read():
    study = staged(
        {"name": "a", "grid": {"width": [8]}},
        {
            "name": "b",
            "grid": {"width": [8]},
            "schedule": {"warmup": {"reading": "alpha_median", "of": "a", "times": 100}},
        },
    )
    assert stage_study(study, study.stages[1], {"schedule.warmup": ReadingValue(210.4)}).schedule.warmup == 210


def test_tune():
    tuned = {"name": "tuned", "tune": {"data_fraction": "1/2", "seed": [1, 2]}, "grid": {"width": [8, 16]}}
    (stage,) = staged(tuned).stages
    assert (stage.kind, stage.role) == ("tune", "result")
    tune = stage.tune
    assert (tune.key, tune.factor, tune.count, tune.rounds) == ("optim.lr", 2.0, 3, 4)
    assert (tune.seed, tune.data_fraction) == ((1, 2), (Fraction(1, 2),))


def test_the_value_that_is_tuned():
    study = toy(task={"name": "toy_task:Toy", "dropout": "1e-1"})
    assert study.value_of("optim.lr") == 0.01
    assert study.value_of("dropout") == 0.1
    assert toy().value_of("dropout") == 0.0
    assert study.with_value("optim.lr", 0.02).optim == dataclasses.replace(study.optim, lr=0.02)
    assert study.with_value("dropout", 0.3).task["dropout"] == 0.3
    with pytest.raises(InputError, match=r"optim.lr: must be a number above 0"):
        study.with_value("optim.lr", 0)


def test_the_definition_changes_exactly_when_the_asks_could():
    def of(*stages, **changes):
        return [definition(stage) for stage in staged(*stages, **changes).stages]

    before = of(RAMP, SMALL)
    assert json.loads(before[1])["readings"] == [["optim.lr", "onset_lr", "ramp", 0.5]]
    assert of({**RAMP, "role": "result"}, SMALL) == before
    assert of(RAMP, SMALL, train={"checkpoints": 9, "workers": 2}, storage="elsewhere") == before
    assert of({**RAMP, "optim": {"lr": "1"}}, SMALL) == before
    assert of(RAMP, {**SMALL, "grid": {"width": [8], "seed": [0]}})[1] != before[1]
    assert of(RAMP, {**SMALL, "grid": {"width": [8], "seed": [0]}})[0] == before[0]
    longer = of(RAMP, SMALL, schedule={"name": "wsd", "warmup": 256, "cooldown": 0.25})
    assert all(a != b for a, b in zip(longer, before, strict=True))


def test_complaints_name_the_line():
    lines = text(RAMP, SMALL).replace("of: ramp", "of: rampe")
    at = next(i for i, line in enumerate(lines.splitlines(), 1) if "of: rampe" in line)
    with pytest.raises(InputError) as caught:
        parse_study(lines, "study.yaml")
    assert str(caught.value).startswith(f"study.yaml:{at}: design.1.optim.lr.of: 'rampe' is no stage")


@pytest.mark.parametrize(
    ("stages", "changes", "words"),
    [
        ((RAMP, RAMP), {}, "design.1.name: 'ramp' is the name of two stages"),
        ((SMALL,), {}, "'ramp' is no stage; the first stage can read nothing"),
        ((SMALL, RAMP), {}, "'ramp' is not an earlier stage"),
        ((RAMP, {**SMALL, "optim": {"lr": {"reading": "best", "of": "ramp"}}}), {}, "unknown reading 'best'; known: lr,"),
        ((RAMP, {**SMALL, "optim": {"lr": {"reading": "lr", "off": "ramp"}}}), {}, "unknown key; did you mean of?"),
        ((RAMP, {**SMALL, "optim": {"name": {"reading": "lr", "of": "ramp"}}}), {}, "must be one of adamw"),
        ((RAMP, {**SMALL, "optim": {"lr": {"reading": "lr", "of": "ramp"}, "reference": {"width": 8}}}), {}, "design.1.optim.reference: is where the rate is read"),
        ((RAMP,), {"grid": {"width": [8]}}, "design: and grid are both given"),
        ((), {}, "grid: is needed and missing"),
        (({"name": "a"},), {}, "stage a needs a grid"),
        (({"name": "a", "tune": {}},), {}, "needs a grid for its final runs"),
        (({"name": "a", "grid": {"seed": [0]}},), {}, "design.0.grid: needs an axis `width`"),
        (({"name": "a", "adaptive": {"budget": 1}},), {}, "design.0.adaptive: is not built yet"),
        (({"name": "a", "role": "probe", "grid": {"width": [8]}},), {}, "no stage has role: result"),
        (({"name": "a", "role": "main", "grid": {"width": [8]}},), {}, "must be one of probe, result"),
        (({"name": "a", "grid": {"width": [8]}, "optim": {"lrr": 1}},), {}, "design.0.optim.lrr: unknown key; did you mean lr?"),
        (({"name": "a", "grid": {"width": [8]}, "optim": {"lr": -1}},), {}, "design.0.optim.lr: must be a number above 0, not -1"),
        (({"name": "a", "grid": {"width": [8]}, "storage": "x"},), {}, "design.0.storage: unknown key"),
        (({"name": "a", "grid": {"width": [8]}, "task": {"name": "gpt"}},), {}, "a stage cannot change the task"),
        (({"name": "a", "grid": {"width": [8]}, "tune": {"count": 2}},), {}, "design.0.tune.count: must be a whole number of at least 3"),
        (({"name": "a", "grid": {"width": [8], "optim.lr": [1]}, "tune": {}},), {}, "optim.lr is tuned and an axis"),
        (({"name": "a", "grid": {"width": [8]}, "tune": {"key": "optim.name"}},), {}, "not a number that can be tuned"),
        (({"name": "a", "grid": {"width": [8]}, "tune": {"key": "train.workers"}},), {}, "not a number that can be tuned"),
        ((5,), {}, "design.0: must be a section"),
    ],
)  # fmt: skip
def test_impossible_designs(stages, changes, words):
    assert words in complaint(*stages, **changes)


def test_a_study_in_stages_is_not_expanded_as_a_whole():
    with pytest.raises(InputError, match="stage by stage"):
        expand(staged(RAMP, SMALL))
