from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import tiny

from scalespec.trainables.checkpoints import RunFolder, local_run
from scalespec.trainables.commits import read_committed
from scalespec.trainables.errors import DataChangedError
from scalespec.trainables.evals import validation
from scalespec.trainables.family import checkpoint_steps, family_schedule, is_logged
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.history import WEIGHTS
from scalespec.trainables.loop import Trainer
from scalespec.trainables.meters import Rate
from scalespec.trainables.spec import RunSpec
from studies import toy_grid

WALL = {"samples_per_s"}


class StopHereError(Exception):
    """Stands for the death of the process."""


def stop_at(step: int):
    left = [step]

    def beat() -> None:
        left[0] -= 1
        if not left[0]:
            raise StopHereError

    return beat


def weights(run: RunFolder) -> dict[int, bytes]:
    return {step: read_committed(run.files, path)[1][WEIGHTS] for step, path in run.history().checkpoints.items()}


def curves(run: RunFolder) -> list[tuple]:
    return [(r["step"], r["samples"], r["metric"], r["value"]) for r in run.metrics() if r["metric"] not in WALL]


def family_of(**changes):
    grid = toy_grid(grid={"width": [8]}, **changes)
    return grid, grid.families().popitem()[1]


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_branch_of_the_trunk_equals_the_run_trained_alone(tmp_path, schedule, dropout):
    grid, family = family_of(schedule={"name": schedule}, task={"name": "toy_task:Toy", "dropout": dropout})
    files = LocalFiles(tmp_path)
    trunk = RunFolder(files, "families/f")
    steps = family_schedule(family, 2048).trunk_kept
    assert len(family) == 3
    for spec in family:
        shared, alone = RunFolder(files, f"shared/{spec.run_key}"), RunFolder(files, f"alone/{spec.run_key}")
        one = Trainer(spec, grid.of(spec), shared, trunk, steps).run()
        other = Trainer(spec, grid.of(spec), alone).run()
        assert one["val_loss"] == other["val_loss"]
        assert one["flops_train"] == other["flops_train"]
        assert weights(shared) == weights(alone)
        assert curves(shared) == curves(alone)
        assert sorted(weights(alone)) == checkpoint_steps(one["steps"], spec.train.checkpoints)


def test_a_fraction_that_joins_later_branches_from_the_same_trunk(tmp_path):
    grid, family = family_of()
    files = LocalFiles(tmp_path)
    trunk = RunFolder(files, "families/f")
    order = [family[2], family[0], family[1]]
    for spec in order:  # the largest first: the others start from a trunk that is beyond their branch
        shared, alone = RunFolder(files, f"shared/{spec.run_key}"), RunFolder(files, f"alone/{spec.run_key}")
        Trainer(spec, grid.of(spec), shared, trunk).run()
        Trainer(spec, grid.of(spec), alone).run()
        assert weights(shared) == weights(alone)


def test_the_curve_of_a_run_that_is_all_trunk_is_whole(tmp_path):
    """Without a cooldown the branch is the end; its step, 125, has no point on the curve of a longer run."""
    grid, family = family_of(schedule={"name": "constant"}, data={"limit": 2000})
    files = LocalFiles(tmp_path)
    trunk = RunFolder(files, "families/f")
    for spec in family:
        shared, alone = RunFolder(files, f"shared/{spec.run_key}"), RunFolder(files, f"alone/{spec.run_key}")
        assert not is_logged(Trainer(spec, grid.of(spec), shared, trunk).run()["steps"]) or spec is not family[-1]
        Trainer(spec, grid.of(spec), alone).run()
        read_again = RunFolder(files, shared.folder), RunFolder(files, alone.folder)
        assert curves(read_again[0]) == curves(read_again[1])


def test_a_damaged_trunk_checkpoint_is_trained_again(tmp_path):
    grid, family = family_of()
    files = LocalFiles(tmp_path)
    trunk = RunFolder(files, "families/f")
    Trainer(family[2], grid.of(family[2]), RunFolder(files, "shared/a"), trunk).run()
    path = tmp_path / list(trunk.history().checkpoints.values())[-1] / WEIGHTS
    path.write_bytes(path.read_bytes()[:50])
    again, alone = RunFolder(files, "shared/b"), RunFolder(files, "alone/b")
    Trainer(family[2], grid.of(family[2]), again, trunk).run()
    Trainer(family[2], grid.of(family[2]), alone).run()
    assert weights(again) == weights(alone)


@pytest.mark.parametrize("at", [1, 40, 100, 127])
@pytest.mark.parametrize("shared", [True, False])
def test_a_run_that_died_goes_on_bit_for_bit(tmp_path, at, shared):
    grid, family = family_of(train={"checkpoints": 5, "resume_every_s": 1e-6})
    spec, files = family[-1], LocalFiles(tmp_path)
    ready = grid.of(spec)
    reference = RunFolder(files, "whole")
    whole = Trainer(spec, ready, reference).run()
    trunk = RunFolder(files, "trunk") if shared else None
    with pytest.raises(StopHereError):
        Trainer(spec, ready, RunFolder(files, "broken"), trunk, beat=stop_at(at)).run()
    broken = RunFolder(files, "broken")
    assert broken.result() is None
    resumed = Trainer(spec, ready, broken, trunk).run()
    assert resumed["val_loss"] == whole["val_loss"]
    assert weights(broken) == weights(reference)
    assert curves(broken) == curves(reference)


def test_after_a_truncated_state_the_run_goes_on_from_the_one_before(tmp_path):
    grid, family = family_of(train={"checkpoints": 5, "resume_every_s": 1e-6})
    spec, files = family[-1], LocalFiles(tmp_path)
    Trainer(spec, grid.of(spec), RunFolder(files, "whole")).run()
    with pytest.raises(StopHereError):
        Trainer(spec, grid.of(spec), RunFolder(files, "broken"), beat=stop_at(60)).run()
    newest = tmp_path / RunFolder(files, "broken").history().states[-1].path / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    Trainer(spec, grid.of(spec), RunFolder(files, "broken")).run()
    assert weights(RunFolder(files, "broken")) == weights(RunFolder(files, "whole"))


def test_divergence_is_a_result_with_its_reason(tmp_path):
    grid, family = family_of(task={"name": "toy_task:Toy", "explode_width": 8})
    run = local_run(tmp_path / "r")
    result = Trainer(family[-1], grid.of(family[-1]), run).run()
    assert result["status"] == "diverged"
    assert result["error"].startswith("non_finite: training loss at step 1")
    assert result["val_loss"] is None
    assert run.result()["status"] == "diverged"


def test_slow_divergence_is_noticed(tmp_path):
    grid = toy_grid(
        grid={"width": [8], "data_fraction": ["1"]}, optim={"lr": 30.0, "grad_clip": None, "width_rule": "none"}
    )
    result = Trainer(grid.runs[0], grid.of(grid.runs[0]), local_run(tmp_path / "r")).run()
    assert result["status"] == "diverged"
    assert result["error"].startswith(("loss_bound", "non_finite"))


def test_the_columns_of_a_result_agree_with_each_other(tmp_path):
    grid, family = family_of()
    spec = family[0]
    run = local_run(tmp_path / "r")
    result = Trainer(spec, grid.of(spec), run).run()
    assert result["steps"] == 512 // 16
    assert result["samples"] == result["unique_samples"] == 512
    assert result["params_total"] == (8 * 8 + 8) + (8 * 8 + 8) + (8 * 4 + 4)
    assert result["params_matmul"] == 8 * 8 + 8 * 8 + 8 * 4
    # no gradient to the input: the first layer has a forward and a weight gradient, the others an input gradient too
    assert result["flops_train"] == 512 * (2 * 2 * 64 + 3 * 2 * 64 + 3 * 2 * 32)
    rows = run.files.read(run.history().val_path).decode().splitlines()
    assert len(rows) == grid.of(spec).data.val_examples
    halves = np.average([result["val_loss_select"], result["val_loss_report"]])
    assert math.isclose(halves, result["val_loss"], rel_tol=1e-12)


def test_the_throughput_counts_training_alone(tmp_path, monkeypatch):
    """By a clock on which a step takes a second and a commit a thousand; several lie between the last points."""
    grid, family = family_of(train={"checkpoints": 20, "resume_every_s": 1e-6}, data={"limit": 2000})
    clock = [0.0]

    def tick(seconds: float):
        clock[0] += seconds

    class Slow(RunFolder):
        def save_weights(self, *args):
            tick(1000)
            super().save_weights(*args)

        def save_state(self, *args, **more):
            tick(1000)
            super().save_state(*args, **more)

    evaluate = validation.evaluate
    monkeypatch.setattr(validation, "evaluate", lambda *args: tick(100) or evaluate(*args))
    run, trunk = Slow(LocalFiles(tmp_path), "run"), Slow(LocalFiles(tmp_path), "trunk")
    trainer = Trainer(family[-1], grid.of(family[-1]), run, trunk, beat=lambda: tick(1))
    trainer.training.rate = Rate(trainer.training.group.device, lambda: clock[0])
    result = trainer.run()
    rates = tiny.curve(run, "samples_per_s")
    assert max(rates) == result["steps"] == 125  # a checkpoint, and no power of two
    assert set(rates.values()) == {result["samples_per_s"]} == {16.0}


def test_fractions_are_prefixes_of_one_permutation_the_same_at_every_width(tmp_path):
    grid = toy_grid(grid={"seed": [0, 1]})
    seen: dict[tuple, np.ndarray] = {}
    for spec in grid.runs:
        trainer = Trainer(spec, grid.of(spec), local_run(tmp_path / spec.run_key))
        steps = trainer.schedule.steps
        rows = np.concatenate([trainer.training.batches.of(step) for step in range(steps)])
        assert len(np.unique(rows)) == len(rows) == steps * 16
        seen[(spec.width, spec.data_fraction, spec.seed)] = rows
    whole = seen[(8, Fraction(1), 0)]
    for (_width, _fraction, seed), rows in seen.items():
        if seed == 0:
            assert np.array_equal(rows, whole[: len(rows)])
    assert not np.array_equal(whole, seen[(8, Fraction(1), 1)])


def test_later_epochs_shuffle_the_same_prefix(tmp_path):
    grid = toy_grid(grid={"width": [8], "data_fraction": ["1/2"]}, train={"epochs": 3})
    spec = grid.runs[0]
    trainer = Trainer(spec, grid.of(spec), local_run(tmp_path / "r"), trunk=local_run(tmp_path / "t"))
    assert trainer.schedule.branch is None
    rows = np.concatenate([trainer.training.batches.of(step) for step in range(trainer.schedule.steps)])
    rows = rows.reshape(3, 1024)
    assert all(np.array_equal(np.sort(rows[0]), np.sort(epoch)) for epoch in rows)
    assert not np.array_equal(rows[0], rows[1])
    assert trainer.run()["unique_samples"] == 1024


def test_other_data_than_planned_is_refused(tmp_path):
    grid, family = family_of()
    spec = dataclasses.replace(family[0], data_identity="0" * 64)
    with pytest.raises(DataChangedError, match="data_changed"):
        Trainer(spec, grid.of(spec), local_run(tmp_path / "r"))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_losses_do_not_depend_on_the_number_of_workers(tmp_path, world):
    """Of a small GPT, and of the CNN whose dropout belongs to its examples."""
    tiny.train_all(str(tmp_path / "one"))
    tiny.in_group(world, tiny.train_all, str(tmp_path / "group"), trunk=True)
    for task in ("gpt", "mnist_cnn"):
        alone, group = (local_run(tmp_path / where / task) for where in ("one", "group"))
        one, other = tiny.curve(alone), tiny.curve(group)
        steps = [step for step in one if step <= 200]
        assert len(steps) > 100
        assert one[steps[-1]] < 0.9 * one[1]
        assert [other[step] for step in steps] == pytest.approx([one[step] for step in steps], abs=1e-5)
        assert group.result()["workers"] == world
        assert group.result()["samples"] == alone.result()["samples"]


def test_a_spec_survives_json():
    grid = toy_grid(grid={"dropout": [0.0, 0.1], "optim.lr": [0.01, 0.02]})
    for spec in grid.runs:
        again = RunSpec.from_json(spec.to_json())
        assert again == spec
        assert again.run_key == spec.run_key
    assert len({spec.run_key for spec in grid.runs}) == len(grid.runs)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"train": {"checkpoints": 9}}, True),
        ({"train": {"reuse_trunk": False}}, True),
        ({"train": {"resume_every_s": 3}}, True),
        ({"optim": {"lr": 0.02}}, False),
        ({"train": {"epochs": 2}}, False),
        ({"data": {"limit": 2000}}, False),
        ({"schedule": {"cooldown": 0.3}}, False),
    ],
)
def test_the_key_changes_exactly_when_numbers_do(change, same):
    keys = [spec.run_key for spec in toy_grid().runs]
    assert ([spec.run_key for spec in toy_grid(**change).runs] == keys) is same
