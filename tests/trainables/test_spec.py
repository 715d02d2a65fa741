from __future__ import annotations

import dataclasses
import json
from dataclasses import MISSING, dataclass, field, replace
from fractions import Fraction

import pytest

from scalespec.trainables.keys import keys_of
from scalespec.trainables.spec import (
    SECTIONS,
    DataConfig,
    OptimConfig,
    Reference,
    RunSpec,
    ScheduleConfig,
    TrainConfig,
)
from scalespec.trainables.task import BUILT_IN, born_options, checked_options, task_class

BORN = {
    "optim.name": "adamw",
    "optim.betas": (0.9, 0.99),
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.0,
    "optim.grad_clip": 1.0,
    "optim.width_rule": "inverse_sqrt_fan_in",
    "optim.batch_rule": "sqrt",
    "schedule.name": "wsd",
    "schedule.warmup": 0,
    "schedule.cooldown": 0.2,
    "train.epochs": 1,
    "train.precision": "fp32",
    "gpt.layers": 2,
    "gpt.context": 64,
    "gpt.head_dim": 16,
    "gpt.vocab": 256,
    "gpt.biases": True,
    "gpt.tied": False,
    "mnist_cnn.dropout": 0.0,
}
"""What every hashed key was born as. Lines are added here, with a key, and never edited: an edit renames runs on people's disks."""

ALWAYS = {"optim.lr", "optim.batch_size", "optim.reference"}


def spec(**changes) -> RunSpec:
    parts = {
        "study": "s",
        "task": "gpt",
        "task_version": 1,
        "loop_version": 1,
        "width": 64,
        "data_fraction": Fraction(1, 4),
        "seed": 1,
        "options": checked_options("gpt", task_class("gpt"), {}),
        "data": DataConfig("stdlib"),
        "data_identity": "ab" * 32,
        "optim": OptimConfig(4e-3, 8, Reference(32, 8)),
        "schedule": ScheduleConfig(),
        "train": TrainConfig(precision="fp32", workers=1),
        "born": born_options(task_class("gpt")),
    }
    return RunSpec(**parts | changes)


def test_born_values_are_never_edited():
    classes = {name: cls for name, cls in SECTIONS.items() if name != "data"}
    classes |= {name: task_class(name).Options for name in BUILT_IN}
    hashed = {f"{name}.{key.name}": key for name, cls in classes.items() for key in keys_of(cls).values() if key.hashed}
    assert {name: key.born for name, key in hashed.items() if key.born is not MISSING} == BORN
    assert {name for name, key in hashed.items() if key.born is MISSING} == ALWAYS
    assert not any(key.hashed for key in keys_of(DataConfig).values())  # the data's identity is


# a key that changes here has renamed every run on people's disks
GOLDEN = {
    "w0064-f025-s1-aa74e52f": {},
    "w0064-f025-s1-8cea5356": {"optim": OptimConfig(1e-2, 16, Reference(32, 8), name="sgd", grad_clip=None, betas=(0.9, 0.95))},
    "w0064-f025-s1-0544c60e": {"schedule": ScheduleConfig("cosine", warmup=512), "train": TrainConfig(2, "bf16", workers=4)},
    "w0064-f025-s1-0c3c5f2f": {"task_version": 2, "loop_version": 3},
    "w0008-f100-s0-c83a6e64": {"task": "my.module:Task", "options": {"depth": 2, "dropout": 0.1}, "born": {}, "width": 8, "data_fraction": Fraction(1), "seed": 0},
}  # fmt: skip


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_keys(key):
    assert spec(**GOLDEN[key]).run_key == key


def test_the_identity_holds_only_what_differs():
    assert spec().identity() == {
        "task": "gpt",
        "width": 64,
        "data_fraction": "1/4",
        "seed": 1,
        "data_identity": "ab" * 32,
        "optim": {"lr": 0.004, "batch_size": 8, "reference": {"width": 32, "batch_size": 8}},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": OptimConfig(4.0e-3, 8, Reference(32, 8), eps=0.00000001, weight_decay=0, grad_clip=1)},
        {"train": TrainConfig(precision="fp32", workers=4, checkpoints=20, reuse_trunk=False, resume_every_s=1)},
        {"data": DataConfig("stdlib", path="/elsewhere")},
        {"study": "other", "axes": {"optim.lr": 4e-3}},
        {"options": {"layers": 2.0, "context": 64, "head_dim": 16, "vocab": 256, "biases": True, "tied": False}},
    ],
)
def test_what_changes_no_number_changes_no_key(changes):
    assert spec(**changes).run_key == spec().run_key
    assert spec(**changes).family_key == spec().family_key


def test_an_option_that_comes_later_renames_no_run():
    new = {"options": {**spec().options, "rotary": False}, "born": {**spec().born, "rotary": False}}
    assert spec(**new).run_key == spec().run_key
    assert spec(**new | {"options": {**spec().options, "rotary": True}}).run_key != spec().run_key


def test_options_of_a_users_own_task_are_hashed_as_filled_in_unless_they_declare_born():
    @dataclass(frozen=True)
    class Options:
        depth: int = 2
        dropout: float = field(default=0.1, metadata={"born": 0.0})

    class Own:
        pass

    Own.Options = Options
    options, born = checked_options("own", Own, {}), born_options(Own)
    own = spec(task="own:Own", options=options, born=born)
    assert own.identity()["options"] == {"depth": 2, "dropout": 0.1}
    assert spec(task="own:Own", options={**options, "dropout": 0.0}, born=born).identity()["options"] == {"depth": 2}


def test_workers_are_in_the_key_of_a_model_that_draws_numbers_itself():
    def of(workers: int, random: bool) -> str:
        train = TrainConfig(precision="fp32", workers=workers)
        return spec(train=train, random_forward=random).run_key

    assert of(1, True) == of(1, False) == of(2, False)
    assert len({of(1, True), of(2, True), of(4, True)}) == 3


@pytest.mark.parametrize("key", ["precision", "workers"])
def test_a_run_has_no_auto(key):
    with pytest.raises(ValueError, match=f"train.{key} is not resolved"):
        spec(train=replace(spec().train, **{key: "auto"}))


def test_a_spec_of_another_version():
    written = json.loads(json.dumps(spec().to_json()))
    assert RunSpec.from_json(written) == spec()
    for section, name in (("optim", "grad_clip"), ("schedule", "cooldown"), ("train", "epochs"), ("data", "tokenizer")):
        older = {**written, section: {k: v for k, v in written[section].items() if k != name}}
        assert RunSpec.from_json(older).run_key == spec().run_key
        newer = {**written, section: {**written[section], "new_key": 1}}
        with pytest.raises(TypeError, match="new_key"):
            RunSpec.from_json(newer)
    older = {k: v for k, v in written.items() if k not in ("born", "random_forward")}
    assert not RunSpec.from_json(older).random_forward
    with pytest.raises(TypeError, match="new_field"):
        RunSpec.from_json({**written, "new_field": 1})
    with pytest.raises(TypeError, match="seed is missing"):
        RunSpec.from_json({k: v for k, v in written.items() if k != "seed"})


def test_the_key_of_a_stored_spec_needs_no_task(monkeypatch):
    stored = replace(spec(), task="not.installed:Task")
    assert RunSpec.from_json(stored.to_json()).run_key == stored.run_key
    assert dataclasses.asdict(stored)["born"] == dict(stored.born)


def test_a_run_has_a_value_on_every_axis():
    found = {
        name: spec().value_of(name) for name in ("layers", "optim.batch_rule", "optim.reference.width", "data.limit")
    }
    assert found == {"layers": 2, "optim.batch_rule": "sqrt", "optim.reference.width": 32, "data.limit": None}
    assert spec().value_of("dropout") is None  # no option of this task
