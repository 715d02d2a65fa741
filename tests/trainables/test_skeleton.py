from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scalespec.trainables.skeleton import skeleton
from scalespec.trainables.tasks.gpt import Gpt
from scalespec.trainables.tasks.mnist_cnn import MnistCnn


@pytest.mark.parametrize("task", [Gpt(Gpt.Options(tied=True)), MnistCnn(MnistCnn.Options())])
def test_a_skeleton_has_the_names_and_shapes_of_the_model(task):
    found, model = skeleton(task, 16), task.build(16)
    assert all(parameter.is_meta for parameter in found.parameters())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in found.named_parameters()} == shapes
    assert [type(module) for module in found.modules()] == [type(module) for module in model.modules()]


INITIALISERS = ("normal_", "uniform_", "trunc_normal_", "orthogonal_", "kaiming_normal_", "xavier_uniform_", "zeros_")


@pytest.mark.parametrize("name", INITIALISERS)
def test_any_initialiser_works_without_numbers_and_leaves_the_generator_alone(name):
    def build(width: int) -> nn.Module:
        model = nn.Linear(4, width)
        getattr(nn.init, name)(model.weight)
        return model

    before = torch.get_rng_state()
    assert skeleton(SimpleNamespace(build=build), 8).weight.shape == (8, 4)
    assert torch.equal(torch.get_rng_state(), before)
