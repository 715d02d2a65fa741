from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import pytest

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study import grid as grid_module
from scalespec.orchestrator.study.checks import checked
from scalespec.orchestrator.study.grid import expand, warning_of
from scalespec.trainables.loop import Prepared
from scalespec.trainables.spec import OptimConfig, ScheduleConfig
from studies import toy, toy_grid


def complaint(**changes) -> str:
    with pytest.raises(InputError) as caught:
        toy_grid(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_point_of_the_grid_is_one_run():
    grid = toy_grid(grid={"dropout": [0.0, 0.1], "seed": [0, 1]})
    assert len(grid.runs) == 2 * 3 * 2 * 2
    assert len({spec.run_key for spec in grid.runs}) == len(grid.runs)


def test_a_family_differs_in_the_data_fraction_only():
    grid = toy_grid(grid={"dropout": [0.0, 0.1], "seed": [0, 1]})
    families = grid.families()
    assert len(families) == 2 * 2 * 2
    for members in families.values():
        assert [spec.data_fraction for spec in members] == [Fraction(1, 4), Fraction(1, 2), Fraction(1)]
        assert len({(spec.width, spec.seed, tuple(spec.axes.items())) for spec in members}) == 1


def test_ladders_are_exact_for_fractions():
    grid = toy_grid(grid={"data_fraction": {"start": 1, "factor": "1/3", "count": 3}, "width": [8]})
    assert [spec.data_fraction for spec in grid.runs] == [1, Fraction(1, 3), Fraction(1, 9)]


def test_the_published_widths_come_out_of_the_ladder():
    grid = toy_grid(grid={"width": {"start": 4, "factor": "sqrt(2)", "count": 11}, "data_fraction": [1]})
    assert [spec.width for spec in grid.runs] == [4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128]


def test_dotted_axes_reach_their_section():
    grid = toy_grid(grid={"optim.lr": [0.01, 0.02], "schedule.cooldown": [0.1], "width": [8], "data_fraction": [1]})
    assert [(spec.optim.lr, spec.schedule.cooldown) for spec in grid.runs] == [(0.01, 0.1), (0.02, 0.1)]


def test_growing_the_grid_keeps_the_old_keys():
    before = {spec.run_key for spec in toy_grid().runs}
    after = {spec.run_key for spec in toy_grid(grid={"width": [8, 16, 32], "seed": [0, 1]}).runs}
    assert before < after


def test_automatic_precision_follows_the_device():
    study = toy()
    assert expand(study).runs[0].train.precision == "fp32"
    assert expand(study, gpus=True).runs[0].train.precision == "bf16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"width": [8, 8.2]}}, "grid.width: 8 occurs more than once after rounding"),
        ({"grid": {"data_fraction": ["1/2", 0.5]}}, "grid.data_fraction: 1/2 occurs more than once"),
        ({"grid": {"data_fraction": [2]}}, "grid.data_fraction: must be a fraction above 0 and at most 1, not 2"),
        ({"grid": {"data_fraction": ["1/1000"]}}, "less than one batch"),
        ({"grid": {"seed": [-1]}}, "grid.seed"),
        ({"grid": {"seed": []}}, "has no values"),
        ({"grid": {"droput": [0.1]}}, "grid.droput: not an option"),
        ({"grid": {"optim.reference": [1]}}, "optim has no scalar key"),
        ({"grid": {"optim.lr": ["x"]}}, "lr"),
        ({"grid": {"seed": list(range(1000)), "width": list(range(1, 101)), "dropout": [0.0, 0.1]}}, "at most 100,000"),
        ({"task": {"name": "toy_task:Toy", "depth": 3}}, "no option 'depth'"),
        ({"task": {"name": "toy_task:Toy", "dropout": "much"}}, "option dropout must be a number; 'much' is not"),
        ({"task": {"name": "no_such_module:Toy"}}, "cannot import no_such_module"),
        ({"task": {"name": "toy_task:Missing"}}, "has no Missing"),
        ({"task": {"name": "cnn"}}, "not built in"),
        ({"train": {"workers": 3}}, "does not divide"),
    ],
)
def test_impossible_grids_are_refused_by_name(changes, words):
    assert words in complaint(**changes)


GPT = {
    "task": {"name": "gpt", "layers": 1, "context": 16},
    "data": {"source": "stdlib", "limit": 400},
    "optim": {"reference": {"width": 16, "batch_size": 16}},
}


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (0, "not 0"),
        (-5, "not -5"),
        (0.3, "not 0.3"),
        (math.nan, "must be a finite number, not nan"),
        (math.inf, "must be a finite number, not inf"),
        ("1e999", "must be a finite number, not inf"),
        (True, "not true"),
        (1e300, "not 1e+300"),
        (1, "1 would become 2 by the task's rounding"),
        ("1/1", "'1/1' would become 2 by the task's rounding"),
    ],
)
def test_a_width_that_cannot_be_is_named(width, words):
    message = complaint(**GPT, grid={"width": [width], "data_fraction": [1]})
    assert message.startswith("grid.width: ")
    assert words in message


def test_a_width_is_rounded_to_what_the_model_can_have():
    runs = toy_grid(**GPT, grid={"width": [9, 3, "sqrt(2)*8", 30], "data_fraction": [1]}).runs
    assert [spec.width for spec in runs] == [10, 4, 12, 32]


def test_a_reference_width_that_the_model_cannot_have():
    changed = {**GPT, "optim": {"reference": {"width": 30, "batch_size": 16}}}
    assert "optim.reference.width: 30 is no width" in complaint(**changed, grid={"width": [8]})


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"seed": [2**63]}, "grid.seed: must fit in 64 bits"),
        ({"seed": [True]}, "grid.seed: must be a whole number of at least 0, not true"),
        ({"seed": [1.5]}, "not 1.5"),
        ({"seed": ["10**64**9"]}, "'10**64**9' is not a number"),
        ({"seed": ["(10**64)**64"]}, "is not a number"),
        ({"seed": ["9" * 5000]}, "is not a number"),
        ({"data_fraction": [0]}, "above 0 and at most 1, not 0"),
        ({"data_fraction": [1.5]}, "not 3/2"),
        ({"data_fraction": ["1e-999999999"]}, "is not a fraction"),
        ({"data_fraction": [True]}, "true is not a fraction"),
        ({"data_fraction": {"start": 1, "factor": "1/3", "count": 1000}}, "too long a fraction"),
        ({"width": {"start": 1e300, "factor": 1e300, "count": 3}}, "grid.width: a value of the ladder is too large"),
        ({"optim.lr": ["1e99999999"]}, "grid.optim.lr: must be a finite number"),
        ({"optim.lr": [True]}, "grid.optim.lr: must be a number above 0, not true"),
        ({"optim.lr": ["1e-3", 0.001]}, "grid.optim.lr: 0.001 occurs more than once"),
        ({"dropout": [0, 0.0]}, "grid.dropout: 0.0 occurs more than once"),
        ({"optim.name": ["sgd", "foo"]}, "grid.optim.name: must be one of adamw, adam, sgd, not 'foo'"),
        ({"train.workers": [1, 2]}, "grid.train.workers: changes no number"),
        ({"train.epoch": [1, 2]}, "train has no scalar key 'epoch' that a grid can vary; known: epochs, precision"),
        ({"foo.lr": [1]}, "foo has no scalar key 'lr'"),
        ({"task.dropout": [0.1]}, "write a task option without `task.`, as grid.dropout"),
    ],
)
def test_values_that_cannot_be_are_named(grid, words):
    assert words in complaint(grid=grid)


def test_numbers_written_differently_are_one_run():
    def keys(**changes):
        return [spec.run_key for spec in toy_grid(**changes).runs]

    assert keys(optim={"lr": 2e-3}) == keys(optim={"lr": "2e-3"}) == keys(optim={"lr": "1/500"})
    assert keys(optim={"grad_clip": 1}) == keys() == keys(schedule={"warmup": 128.0})
    one = keys(task={"name": "toy_task:Toy", "dropout": 0}, grid={"seed": ["3"]})
    assert one == keys(task={"name": "toy_task:Toy", "dropout": "0.0"}, grid={"seed": [3]})


def test_a_run_that_two_grids_share_has_one_key():
    alone = {spec.run_key for spec in toy_grid(optim={"lr": 0.02}).runs}
    beside = {spec.run_key for spec in toy_grid(grid={"optim.lr": [0.01, "2e-2"], "dropout": [0]}).runs}
    assert alone < beside


def test_sections_are_checked_once_for_each_value(monkeypatch):
    calls = []
    monkeypatch.setattr(grid_module, "checked", lambda cls, raw: calls.append(cls) or checked(cls, raw))
    runs = toy_grid(grid={"seed": list(range(50)), "optim.lr": [0.01, 0.02]}).runs
    assert len(runs) == 50 * 2 * 2 * 3
    assert Counter(calls)[OptimConfig] == 2
    assert Counter(calls)[ScheduleConfig] == 1


def test_a_model_that_draws_numbers_itself_is_marked_and_the_plan_says_so(monkeypatch):
    assert not any(spec.random_forward or warning_of(spec) for spec in toy_grid().runs)
    counts = Prepared.counts
    monkeypatch.setattr(
        Prepared,
        "counts",
        lambda self, width: SimpleNamespace(**{**vars(counts(self, width)), "random_forward": width == 16}),
    )
    runs = toy_grid(train={"workers": 2}).runs
    assert {spec.width for spec in runs if spec.random_forward} == {16}
    assert {spec.width for spec in runs if warning_of(spec)} == {16}
    assert "train.workers (2) is part of the key" in warning_of(runs[-1])
    one, two = (toy_grid(train={"workers": workers}).runs for workers in (1, 2))
    assert not any(map(warning_of, one))
    assert {a.width for a, b in zip(one, two, strict=True) if a.run_key != b.run_key} == {16}


def test_mnist_that_is_not_there_is_one_clear_line(tmp_path):
    message = complaint(
        task={"name": "mnist_cnn"}, data={"source": "mnist", "path": str(tmp_path / "absent"), "limit": None}
    )
    assert str(tmp_path / "absent") in message
