"""What the built-in tasks show at the end of a run: predictions and sampled text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from scalespec.trainables import media
from scalespec.trainables.checkpoints import local_run
from scalespec.trainables.errors import TaskError
from scalespec.trainables.evals import samples
from scalespec.trainables.evals.predictions import DIGITS, RIGHT, WRONG, grid, predictions
from scalespec.trainables.evals.samples import continued
from scalespec.trainables.evals.seam import Context
from scalespec.trainables.group import Group
from scalespec.trainables.history import WEIGHTS


def test_a_grid_is_as_square_as_its_images_allow():
    images = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1) + 1
    whole = grid(images)
    assert whole.shape == (2 * 2, 3 * 3, 1)
    assert np.array_equal(whole[:2, 3:6], images[1])
    assert np.array_equal(whole[2:, :3], images[3])
    assert not whole[2:, 6:].any()


def test_digits_are_all_different():
    assert len(set(DIGITS)) == 10
    assert all(0 < digit < 1 << 15 for digit in DIGITS)


class Sure(torch.nn.Module):
    """Sure that an id is followed by its successor, and that nothing beyond the vocabulary follows."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        self.lengths.append(ids_BT.shape[1])
        logits = 1e4 * torch.nn.functional.one_hot((ids_BT + 1) % 8, 10).float()
        logits[..., 8:] = 1e6
        return logits


def test_text_goes_on_as_the_model_thinks_within_its_context_and_vocabulary():
    model = Sure()
    out = continued(model, torch.tensor([[1, 2, 3], [5, 6, 7]]), 6, context=4, vocab=8, seed=0)
    assert out.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 1], [5, 6, 7, 0, 1, 2, 3, 4, 5]]
    assert model.lengths == [3, 4, 4, 4, 4, 4]


def test_draws_follow_the_distribution_and_their_seed():
    def flat(ids_BT):
        return torch.log(torch.tensor([0.1, 0.2, 0.7])).expand(*ids_BT.shape, 3)

    rows = [continued(flat, torch.zeros(400, 1, dtype=torch.int64), 3, 8, 3, seed)[:, 1:] for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    shares = torch.bincount(rows[0].flatten(), minlength=3) / rows[0].numel()
    # five standard deviations of a share near a half, of 1,200 draws
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.072)


@pytest.mark.parametrize(("task", "file"), [("gpt", "samples.txt"), ("mnist_cnn", "predictions.png")])
def test_they_are_shown_at_the_last_step_and_change_nothing(tmp_path, task, file):
    digests, media_of = [], {}
    for name, shown in (("with", True), ("without", False)):
        tiny.train(str(tmp_path / name), task, train={"media": shown})
        history = local_run(tmp_path / name).history()
        weights = Path(tmp_path, history.checkpoints[225], WEIGHTS)
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
        media_of[name] = {
            step: sorted(path.name for path in Path(tmp_path, folder).iterdir())
            for step, folder in history.media.items()
        }
    assert digests[0] == digests[1]
    assert media_of == {"with": {225: sorted([file, "manifest.json"])}, "without": {}}
    assert local_run(tmp_path / "with").result()["status"] == "done"


def test_frames_say_which_are_right(monkeypatch):
    spec, prepared = tiny.tiny("mnist_cnn")
    labels = torch.from_numpy(prepared.data.val[1])

    def every_second(pixels_BHW):
        wrong = torch.arange(len(pixels_BHW)) % 2
        return torch.nn.functional.one_hot((labels[: len(pixels_BHW)] + wrong) % 10, 10).float()

    drawn: list[np.ndarray] = []
    monkeypatch.setattr(media, "image", lambda name, pixels: drawn.append(pixels))
    predictions(prepared.task, every_second, prepared.data, Context(spec, Group(), 1, 16, 0))
    corners = drawn[0][::32, ::32].reshape(-1, 3)
    assert [tuple(corner) for corner in corners.tolist()] == [RIGHT, WRONG] * 8


def test_without_a_tokenizer_the_text_is_its_numbers(monkeypatch):
    def gone(name):
        raise TaskError("cannot be fetched")

    monkeypatch.setattr(samples, "tokenizer", gone)
    spec, prepared = tiny.tiny("gpt")
    model = prepared.task.build(16).eval()
    (shown,) = samples.samples(prepared.task, model, prepared.data, Context(spec, Group(), 1, 2, 0)).media
    first = prepared.data.val[0][0, : samples.PROMPT]
    assert shown.data.decode().startswith(" ".join(map(str, first)) + " ▸ ")
