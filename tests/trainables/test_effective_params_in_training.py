from __future__ import annotations

import numpy as np
import pytest
import torch

from scalespec.analysis.laws.effective_params import GPT2_TOKENIZERS, KAPLAN
from scalespec.analysis.laws.effective_params import effective_params as of_arrays
from scalespec.trainables import effective_params
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.files import LocalFiles
from scalespec.trainables.loop import Trainer
from studies import toy_grid

READINGS = ("n_eff_ema", "n_eff_batches", "n_eff_clamped_ema", "n_eff_clamped_batches")


def test_the_transform_and_its_constants_are_those_of_the_analysis():
    losses = np.linspace(1.0, 12.0, 50)
    assert effective_params.effective_params(torch.from_numpy(losses)).numpy() == pytest.approx(of_arrays(losses))
    assert (
        KAPLAN.n_c,
        KAPLAN.exponent,
        KAPLAN.entropy,
    ) == (effective_params.N_C, effective_params.EXPONENT, effective_params.ENTROPY)
    assert effective_params.TOKENIZERS == GPT2_TOKENIZERS


@pytest.mark.parametrize(
    ("unit", "tokenizer", "known"),
    [("tokens", "gpt2", True), ("tokens", "bytes", False), ("tokens", None, False), ("images", "gpt2", False)],
)
def test_they_mean_something_for_text_in_tokens_alone(unit, tokenizer, known):
    assert effective_params.applies(unit, tokenizer) is known


def read(tmp_path, monkeypatch, entropy: float, applies: bool = True) -> dict[str, dict[int, float]]:
    """metric → step → value of a run trained with that entropy floor."""
    monkeypatch.setattr(effective_params, "applies", lambda unit, tokenizer: applies)
    monkeypatch.setattr(effective_params, "ENTROPY", entropy)
    grid = toy_grid(grid={"width": [8]})
    spec, folder = grid.runs[-1], RunFolder(LocalFiles(tmp_path), "run")
    Trainer(spec, grid.of(spec), folder).run()
    found: dict[str, dict[int, float]] = {}
    for row in folder.metrics():
        found.setdefault(row["metric"], {})[row["step"]] = row["value"]
    return found


def test_both_readings_of_a_run_are_recorded(tmp_path, monkeypatch):
    found = read(tmp_path, monkeypatch, entropy=1e-9)
    smooth, batches = found["n_eff_ema"], found["n_eff_batches"]
    assert set(smooth) == set(found["train_loss_ema"])
    for step, value in smooth.items():
        loss = torch.tensor(found["train_loss_ema"][step], dtype=torch.float64)
        assert value == pytest.approx(effective_params.effective_params(loss).item())
        # Jensen: the mean of a convex transform is not below the transform of the mean
        assert batches[step] >= value * (1 - 1e-5)  # a batch loss is a float32
        assert found["n_eff_clamped_ema"][step] == found["n_eff_clamped_batches"][step] == 0
    assert batches[1] == pytest.approx(smooth[1], rel=1e-5)


def test_clamped_values_are_counted(tmp_path, monkeypatch):
    found = read(tmp_path, monkeypatch, entropy=1e9)
    last = max(found["n_eff_ema"])
    assert found["n_eff_clamped_ema"][last] == found["n_eff_clamped_batches"][last] == 1
    assert found["n_eff_ema"][last] == pytest.approx(found["n_eff_batches"][last], rel=1e-5)


def test_elsewhere_nothing_is_recorded(tmp_path, monkeypatch):
    found = read(tmp_path, monkeypatch, entropy=1.69, applies=False)
    assert not set(READINGS) & set(found)
