from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scalespec.trainables.errors import TaskError
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Task, make_task
from scalespec.trainables.tasks.mnist_cnn import MnistCnn


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (size, 28, 28), generator=generator).to(torch.uint8)
    return pixels, torch.randint(0, 10, (size,), generator=generator)


def test_mnist_cnn_is_a_task():
    task = make_task("mnist_cnn", {"dropout": 0.2})
    assert isinstance(task, Task)
    assert task.options.dropout == 0.2


def test_width_ladder_is_the_published_one():
    ladder = [MnistCnn.round_width(4 * math.sqrt(2) ** k) for k in range(11)]
    assert ladder == [4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128]
    assert MnistCnn.round_width(0.1) == 1


@pytest.mark.parametrize("width", [4, 23, 128])
def test_layers_have_the_published_shapes(width):
    shapes = {
        name: tuple(p.shape) for name, p in MnistCnn(MnistCnn.Options()).build(width).named_parameters() if p.ndim > 1
    }
    assert shapes == {
        "conv1.weight": (width, 1, 3, 3),
        "conv2.weight": (2 * width, width, 3, 3),
        "linear.weight": (10, 98 * width),
    }


def test_initialisation_follows_fan_in():
    """PyTorch's default: U(±1/√fan_in), whose standard deviation is 1/√(3·fan_in)."""
    torch.manual_seed(0)
    model = MnistCnn(MnistCnn.Options()).build(64)
    assert model.conv2.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 9 * 64), rel=0.02)
    assert model.linear.weight.abs().max().item() == pytest.approx(1 / math.sqrt(98 * 64), rel=0.01)


def test_losses_are_of_each_image():
    torch.manual_seed(0)
    task = MnistCnn(MnistCnn.Options())
    model, (pixels, labels) = task.build(8).eval(), batch()
    loss_B, correct_B = task.losses(model, (pixels, labels))
    for row in range(len(labels)):
        logits = model(pixels[row : row + 1])
        torch.testing.assert_close(loss_B[row], F.cross_entropy(logits, labels[row : row + 1]))
        assert correct_B[row].item() == (logits.argmax().item() == labels[row].item())


def test_dropout_acts_in_training_only_and_by_the_seed():
    task = MnistCnn(MnistCnn.Options(dropout=0.5))
    torch.manual_seed(0)
    model = task.build(8)

    def losses(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return task.losses(model, batch()).loss_B

    model.train()
    assert torch.equal(losses(1), losses(1))
    assert not torch.equal(losses(1), losses(2))
    model.eval()
    assert torch.equal(losses(1), losses(2))


def test_correctness_is_left_out_of_training():
    task = MnistCnn(MnistCnn.Options())
    model = task.build(4)
    assert task.losses(model.train(), batch()).correct_B is None
    assert task.losses(model.eval(), batch()).correct_B is not None


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_impossible_dropout_is_refused(dropout):
    with pytest.raises(TaskError, match="option dropout"):
        make_task("mnist_cnn", {"dropout": dropout})


def test_it_learns_real_digits(shared):
    """One pass over 3,000 images brings a small net far above chance on 10,000 it has not seen."""
    torch.manual_seed(0)
    task = MnistCnn(MnistCnn.Options())
    data = task.load(DataConfig("mnist", path=str(shared / "data" / "mnist"), limit=3000))
    model = task.build(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, labels = (torch.from_numpy(array) for array in data.train)
    for start in range(0, 3000, 20):
        task.losses(model, (images[start : start + 20], labels[start : start + 20])).loss_B.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        results = task.losses(model.eval(), tuple(torch.from_numpy(array) for array in data.val))
    assert results.correct_B.mean().item() > 0.9
    assert results.loss_B.mean().item() < 0.3
