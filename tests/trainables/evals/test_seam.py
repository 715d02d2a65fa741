"""Evaluations of a task's own: when they are made, where they go, and that training does not notice them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from scalespec.trainables import media
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.errors import TaskError
from scalespec.trainables.evals.seam import Eval, Measured
from scalespec.trainables.family import family_schedule
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.history import step_folder
from scalespec.trainables.loop import Trainer
from scalespec.trainables.prepared import Prepared
from studies import toy_grid


def norm(task, model, data, context) -> dict[str, float]:
    """A metric that any state of the model changes, and that draws from the global generator as careless ones do."""
    torch.rand(3)
    assert not model.training
    assert not torch.is_grad_enabled()
    return {"first_weight": model.hidden.weight[0, 0].item(), "nothing": float("nan")}


def words(task, model, data, context) -> Measured:
    shown = [media.text("words", f"{context.step} {context.examples}"), media.table("row", ["seed"], [[context.seed]])]
    return Measured({"shown": 1.0}, shown)


def family_with(*evals: Eval, **changes):
    """The specs of a family of the toy task and what they need, with evaluations of its own."""
    grid = toy_grid(grid={"width": [8]}, **changes)
    family = grid.families().popitem()[1]
    prepared = grid.of(family[0])
    prepared.task.evals = evals
    return family, Prepared(prepared.task, prepared.data)


def points(run: RunFolder, metric: str) -> list[int]:
    return [row["step"] for row in run.metrics() if row["metric"] == metric]


def pictures(run: RunFolder) -> dict[str, bytes]:
    """Committed media by path; every folder has the manifest of all its files."""
    out = {}
    for step, folder in run.history().media.items():
        kinds = json.loads(run.files.read(f"{folder}/manifest.json"))["kinds"]
        assert sorted([*kinds, "manifest.json"]) == run.files.names(folder)
        out |= {f"{step_folder(step)}/{name}": run.files.read(f"{folder}/{name}") for name in kinds}
    return out


@pytest.mark.parametrize(
    ("when", "steps"),
    [("checkpoint", [0, 16, 32, 64, 128]), ("last", [128]), (50, [50, 100]), (32, [32, 64, 96, 128])],
)
def test_metrics_stand_on_curves_at_the_steps_asked_for(tmp_path, when, steps):
    family, prepared = family_with(Eval("norm", when, norm))
    run = RunFolder(LocalFiles(tmp_path), "run")
    Trainer(family[-1], prepared, run).run()
    assert points(run, "first_weight") == steps
    assert points(run, "nothing") == []
    assert points(run, "val_loss") == [0, 16, 32, 64, 128]


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_branch_has_the_curves_and_media_of_the_run_alone(tmp_path, schedule):
    evals = [
        Eval("norm", "checkpoint", norm),
        Eval("often", 10, lambda *args: {"often": norm(*args)["first_weight"]}),
        Eval("words", "checkpoint", words, examples=3),
        Eval("pages", 20, lambda *args: Measured(media=[media.text("page", str(args[3].step))])),
        Eval("end", "last", lambda *args: Measured({"end": 1.0}, [media.text("end", str(args[3].seed))])),
    ]
    family, prepared = family_with(*evals, schedule={"name": schedule})
    files = LocalFiles(tmp_path)
    trunk, kept = RunFolder(files, "trunk"), family_schedule(family, 2048).trunk_kept
    for spec in family:
        shared, alone = RunFolder(files, f"shared/{spec.run_key}"), RunFolder(files, f"alone/{spec.run_key}")
        Trainer(spec, prepared, shared, trunk, kept).run()
        Trainer(spec, prepared, alone).run()
        a, b = (
            [(row["step"], row["metric"], row["value"]) for row in run.metrics() if row["metric"] != "samples_per_s"]
            for run in (shared, alone)
        )
        assert a == b
        assert pictures(shared) == pictures(alone)
        last = step_folder(family_schedule(family, 2048).runs[family.index(spec)].steps)
        assert {f"{last}/words.txt", f"{last}/row.json", f"{last}/end.txt"} <= set(pictures(alone))


def test_training_does_not_notice_what_is_measured(tmp_path):
    """With torch's own dropout in the model, whose generator an evaluation drew from."""
    task = {"name": "toy_task:Toy", "dropout": 0.3}
    files = LocalFiles(tmp_path)
    results = []
    for name, evals in (("with", [Eval("norm", 3, norm), Eval("words", 7, words)]), ("without", [])):
        family, prepared = family_with(*evals, task=task)
        results.append(Trainer(family[-1], prepared, RunFolder(files, name)).run())
    wall = {"samples_per_s", "duration_s"}
    a, b = ({key: value for key, value in result.items() if key not in wall} for result in results)
    assert a == b


def test_media_can_be_left_out(tmp_path):
    family, prepared = family_with(Eval("words", "last", words, shows=True), Eval("norm", "last", norm))
    spec = dataclasses.replace(family[0], train=dataclasses.replace(family[0].train, media=False))
    run = RunFolder(LocalFiles(tmp_path), "run")
    Trainer(spec, prepared, run).run()
    assert pictures(run) == {}
    assert points(run, "first_weight") == [32]
    assert spec.run_key == family[0].run_key


def test_what_cannot_be_is_refused_by_name():
    for when in ("always", 0, -5):
        with pytest.raises(TaskError, match="eval norm: when is checkpoint, last or a number of steps"):
            Eval("norm", when, norm)
    family, prepared = family_with(Eval("norm", 1, norm), Eval("norm", 2, norm))
    with pytest.raises(TaskError, match="two evals have one name"):
        Trainer(family[0], prepared, RunFolder(LocalFiles("/nonexistent"), "run"))
