from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from scalespec.trainables.errors import TaskError
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Task, make_task
from scalespec.trainables.tasks.gpt import GPT2_SMALL, Gpt, heads


def windows(batch: int = 4, context: int = 64, vocab: int = 256) -> tuple[torch.Tensor]:
    return (torch.randint(0, vocab, (batch, context + 1), generator=torch.Generator().manual_seed(3)).to(torch.uint8),)


def test_gpt_is_a_task():
    task = make_task("gpt", {"layers": 1})
    assert isinstance(task, Task)
    assert task.options == Gpt.Options(layers=1)


def test_gpt2_small_has_exactly_the_published_parameters():
    with torch.device("meta"):
        model = Gpt(GPT2_SMALL).build(768)
        padded = Gpt(dataclasses.replace(GPT2_SMALL, vocab=50304)).build(768)
    for built in (model, padded):
        assert sum(p.numel() for p in built.parameters()) == 124_475_904
    assert model.blocks[0].heads == 12


def test_widths_round_to_multiples_of_eight_and_small_ones_to_even_numbers():
    ladder = [Gpt.round_width(16 * 2 ** (k / 2)) for k in range(7)]
    assert ladder == [16, 24, 32, 48, 64, 88, 128]
    assert Gpt.round_width(0.5) == 2
    assert [Gpt.round_width(width) for width in (3.1, 11.5, 15.5)] == [4, 12, 16]
    assert all(Gpt.round_width(width) == width for width in range(8, 2048, 8))


def test_every_width_divides_into_heads():
    assert [heads(width, 16) for width in (2, 8, 12, 14)] == [1, 1, 1, 1]
    for width in range(16, 1025, 8):
        for head_dim in (16, 64):
            size, rest = divmod(width, heads(width, head_dim))
            assert rest == 0
            assert size % 8 == 0
            assert size == head_dim or width % head_dim


def test_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    task = Gpt(Gpt.Options())
    loss_B, correct_B = task.losses(task.build(64).eval(), windows(16))
    assert loss_B.mean().item() == pytest.approx(math.log(256), rel=0.1)
    assert correct_B is not None
    assert 0 <= correct_B.min() <= correct_B.max() < 0.1


def test_initialisation_is_gpt2s_at_768_and_follows_fan_in():
    torch.manual_seed(0)
    for width, std in ((768, 0.02), (192, 0.04)):
        model = Gpt(dataclasses.replace(GPT2_SMALL, layers=2, vocab=1000, tied=False)).build(width)
        assert model.blocks[0].qkv.weight.std().item() == pytest.approx(std, rel=0.02)
        assert model.blocks[0].mlp_out.weight.std().item() == pytest.approx(std / 2, rel=0.02)
        assert model.head.weight.std().item() == pytest.approx(std, rel=0.02)
        assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not model.blocks[0].qkv.bias.any()


def test_losses_are_means_over_each_window_and_separate():
    torch.manual_seed(0)
    task = Gpt(Gpt.Options(context=12))
    model, (ids,) = task.build(32).eval(), windows(5, 12)
    loss_B, correct_B = task.losses(model, (ids,))
    for row in range(5):
        logits = model(ids[row : row + 1, :-1].long())[0]
        targets = ids[row, 1:].long()
        torch.testing.assert_close(loss_B[row], F.cross_entropy(logits, targets))
        assert correct_B[row].item() == pytest.approx((logits.argmax(1) == targets).float().mean().item())


def test_no_position_sees_its_future():
    torch.manual_seed(0)
    model, (ids,) = Gpt(Gpt.Options(context=12)).build(32), windows(1, 12)
    ids = ids.long()
    changed = ids.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 256
    before, after = model(ids[:, :-1]), model(changed[:, :-1])
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_padding_of_the_vocabulary_is_not_predicted():
    """The loss is that of a softmax over the real ids, and the padding gets no gradient from the head."""
    torch.manual_seed(0)
    task = Gpt(Gpt.Options(context=12, vocab=100))
    model, batch = task.build(32), windows(3, 12, vocab=100)
    loss_B = task.losses(model, batch).loss_B
    logits = model(batch[0][:, :-1].long())[..., :100]
    expected = F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].long().flatten())
    assert model.head.weight.shape[0] == 128
    torch.testing.assert_close(loss_B.mean(), expected)
    loss_B.mean().backward()
    assert not model.head.weight.grad[100:].any()
    assert model.head.weight.grad[:100].any()


def test_tied_head_is_one_tensor():
    model = Gpt(Gpt.Options(tied=True)).build(32)
    assert model.head.weight is model.token_embedding.weight
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert "head.weight" not in dict(model.named_parameters())


def test_correctness_is_left_out_of_training():
    task = Gpt(Gpt.Options())
    model = task.build(16)
    assert task.losses(model.train(), windows()).correct_B is None
    assert task.losses(model.eval(), windows()).correct_B is not None


def test_it_learns_text_that_repeats():
    torch.manual_seed(0)
    task = Gpt(Gpt.Options(context=16))
    model = task.build(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = (torch.arange(8 * 17).view(8, 17).remainder(7).to(torch.uint8),)
    for _ in range(40):
        task.losses(model, batch).loss_B.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    loss_B, correct_B = task.losses(model.eval(), batch)
    assert loss_B.max() < 0.1
    assert correct_B.min() == 1


def test_a_tokenizer_beyond_the_vocabulary_is_refused():
    with pytest.raises(TaskError, match="vocab to 256"):
        Gpt(Gpt.Options(vocab=200)).load(DataConfig("stdlib", limit=10))


@pytest.mark.parametrize("option", ["layers", "context", "head_dim", "vocab"])
def test_impossible_options_are_refused(option):
    with pytest.raises(TaskError, match=f"option {option}"):
        make_task("gpt", {option: 0})
