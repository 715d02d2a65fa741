from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scalespec.trainables.rules.dropout import Dropout, Place, layers_of, placed


def masks(model: nn.Module, x: torch.Tensor, place: Place) -> torch.Tensor:
    with placed(layers_of(model), place):
        return model(x)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000), st.sampled_from([(), (5,), (3, 4)]))
def test_workers_together_draw_the_mask_of_one(world, rows, step, shape):
    layer, total = Dropout(0.4), world * rows
    x = torch.ones(total, *shape)
    one = masks(layer, x, Place(7, step, 0, total, total))
    parts = [masks(layer, x[:rows], Place(7, step, rank * rows, rows, total)) for rank in range(world)]
    assert torch.equal(torch.cat(parts), one)


def test_tokens_folded_behind_their_example_keep_its_mask():
    x = torch.ones(4 * 6, 8)
    one = masks(Dropout(0.5), x, Place(0, 3, 0, 4, 4))
    part = masks(Dropout(0.5), x[:12], Place(0, 3, 2, 2, 4))
    assert torch.equal(part, one[12:])
    with pytest.raises(ValueError, match="multiple of the batch"):
        masks(Dropout(0.5), x, Place(0, 3, 0, 5, 5))


def test_masks_differ_by_seed_step_layer_and_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Dropout(0.5), Dropout(0.5)

        def forward(self, x):
            return torch.stack([self.first(x), self.first(x), self.second(x)])

    x = torch.ones(8, 64)
    drawn = [
        mask for seed in (0, 1) for step in (0, 1) for mask in masks(Twice(), x, Place(seed, step, 0, 8, 8)).unbind()
    ]
    assert len({tuple(mask.flatten().tolist()) for mask in drawn}) == 2 * 2 * 3


def test_a_share_p_is_dropped_and_the_mean_is_kept():
    out = masks(Dropout(0.2), torch.ones(100, 1000), Place(0, 0, 0, 100, 100))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    # five standard deviations of a binomial share
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 1e5) ** 0.5)


def test_neither_the_global_generator_nor_evaluation_is_touched():
    layer, x = Dropout(0.5), torch.ones(4, 8)
    before = torch.get_rng_state()
    masks(layer, x, Place(0, 0, 0, 4, 4))
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_outside_a_step_it_is_torchs_dropout():
    layer, x = Dropout(0.5), torch.ones(4, 64)
    masks(layer, x, Place(0, 0, 0, 4, 4))
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    assert torch.equal(ours, nn.functional.dropout(x, 0.5))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_an_impossible_share_is_refused(p):
    with pytest.raises(ValueError, match="share of features"):
        Dropout(p)
