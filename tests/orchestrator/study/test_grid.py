from __future__ import annotations

from fractions import Fraction

import pytest

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.grid import expand
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


def test_mnist_that_is_not_there_is_one_clear_line(tmp_path):
    message = complaint(
        task={"name": "mnist_cnn"}, data={"source": "mnist", "path": str(tmp_path / "absent"), "limit": None}
    )
    assert str(tmp_path / "absent") in message
