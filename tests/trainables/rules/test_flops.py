from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalespec.trainables.errors import TaskError
from scalespec.trainables.rules.dropout import Dropout
from scalespec.trainables.rules.flops import CONVENTION, count, example_of, peak_flops
from scalespec.trainables.task import Losses
from scalespec.trainables.tasks.gpt import GPT2_SMALL, Gpt
from scalespec.trainables.tasks.mnist_cnn import MnistCnn

IMAGE = example_of((np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.int64)))


def tokens(context: int):
    return example_of((np.zeros((2, context + 1), np.uint16),))


def task_of(build, loss):
    """The part of a task that a count needs."""
    return SimpleNamespace(build=build, losses=lambda model, batch: Losses(loss(model, batch), None))


def gpt_closed_form(options, width: int) -> tuple[int, int]:
    """Matmul and attention FLOPs of a window: 6·N_mm and 12·L·d·T a token."""
    vocab = -(-options.vocab // 128) * 128
    matmul = 6 * (12 * options.layers * width**2 + vocab * width) * options.context
    return matmul, 12 * options.layers * width * options.context**2


def test_gpt2_small_has_the_published_sizes():
    counts = count(Gpt(GPT2_SMALL), 768, tokens(1024))
    assert counts.params_total == 124_475_904
    assert counts.params_matmul == 123_568_128
    assert counts.params_embedding == 38_633_472 + 786_432


def test_gpt2_small_flops_a_token_under_every_convention():
    """The PaLM form 6N + 12·L·d·T with N = matmul parameters, the causal form, 6·N_mm; in MFLOP."""
    counts = count(Gpt(GPT2_SMALL), 768, tokens(1024))
    a_token = {name: getattr(counts, name) / 1024 / 1e6 for name in ("flops_train", "flops_causal", "flops_matmul")}
    assert a_token == {
        "flops_train": pytest.approx(854.7, abs=0.05),
        "flops_causal": pytest.approx(798.0, abs=0.05),
        "flops_matmul": pytest.approx(741.4, abs=0.05),
    }


@pytest.mark.parametrize(
    "options", [Gpt.Options(), Gpt.Options(layers=3, context=40, biases=False, vocab=65), GPT2_SMALL]
)
@pytest.mark.parametrize("width", [16, 64, 88])
def test_gpt_equals_its_closed_form(options, width):
    counts = count(Gpt(options), width, tokens(options.context))
    matmul, attention = gpt_closed_form(options, width)
    assert counts.flops_matmul == 6 * counts.params_matmul * options.context == matmul
    assert counts.flops_train == matmul + attention
    assert counts.flops_causal == matmul + attention // 2


@pytest.mark.parametrize("width", [4, 16, 128])
def test_cnn_equals_its_closed_form(width):
    """Multiply-adds: 9·w·28² (no gradient to the pixels), 18·w²·14², 980·w; three products each but the first."""
    counts = count(MnistCnn(MnistCnn.Options(dropout=0.2)), width, IMAGE)
    assert counts.flops_train == 2 * (2 * 9 * width * 28**2 + 3 * 18 * width**2 * 14**2 + 3 * 980 * width)
    assert counts.params_matmul == 9 * width + 18 * width**2 + 980 * width
    assert counts.params_total == counts.params_matmul + 3 * width + 10
    assert counts.flops_matmul == counts.flops_causal == counts.flops_train
    assert counts.params_embedding == 0


def test_6nd_is_meaningless_for_the_cnn():
    """Three forward passes over 6·N: from 21 times too little at width 4 to 140 times at width 128."""
    ratios = []
    for width in (4, 128):
        counts = count(MnistCnn(MnistCnn.Options()), width, IMAGE)
        three_forward = counts.flops_train + 2 * 9 * width * 28**2
        ratios.append(three_forward / (6 * counts.params_matmul))
    assert ratios == [pytest.approx(21, abs=0.5), pytest.approx(140, abs=0.5)]


def test_mlp_equals_its_closed_form():
    task = task_of(
        lambda width: nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 5)),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
    )
    counts = count(task, 32, example_of((np.zeros((1, 20), np.float32), np.zeros(1, np.int64))))
    assert counts.flops_train == 2 * (2 * 20 * 32 + 3 * 32 * 5)
    assert counts.params_matmul == 20 * 32 + 32 * 5


def test_count_equals_pytorchs_counter_on_a_real_batch():
    task, batch = Gpt(Gpt.Options(context=24)), (torch.zeros((7, 25), dtype=torch.uint8),)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        task.losses(task.build(48), batch).loss_B.mean().backward()
    assert counter.get_total_flops() == 7 * count(task, 48, tokens(24)).flops_train


def test_tied_head_counts_once_in_total_and_as_head_and_as_embedding():
    tied, untied = (count(Gpt(Gpt.Options(tied=tied)), 32, tokens(64)) for tied in (True, False))
    assert untied.params_total - tied.params_total == 256 * 32
    assert tied.params_matmul == untied.params_matmul
    assert tied.params_embedding == untied.params_embedding == (256 + 64) * 32
    assert tied.flops_train == untied.flops_train


def test_grouped_convolutions_are_not_over_counted():
    """A depthwise kernel does 9 multiply-adds a pixel and channel, in the forward pass and for each of two gradients."""
    task = task_of(
        lambda width: nn.Sequential(
            nn.Conv2d(1, width, 1, bias=False), nn.Conv2d(width, width, 3, padding=1, groups=width)
        ),
        lambda model, batch: model(batch[0]).mean((1, 2, 3)),
    )
    counts = count(task, 8, example_of((np.zeros((1, 1, 10, 10), np.float32),)))
    assert counts.flops_train == 2 * (2 * 8 * 100 + 3 * 9 * 8 * 100)


def test_weights_of_any_kind_are_told_from_activations():
    """Raw parameters through einsum, cast and weight-normed weights are weights; what is only added is not a matmul's."""

    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(6, width))
            self.mix = nn.Parameter(torch.zeros(width, width))
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.einsum("btd,de->bte", x + self.position, self.mix.double().float())
            scores = x @ x.transpose(1, 2)
            return self.normed(scores @ x).mean((1, 2))

    task = task_of(Model, lambda model, batch: model(batch[0]))
    counts = count(task, 16, example_of((np.zeros((1, 6, 16), np.float32),)))
    attention = 2 * (2 * 6 * 6 * 16 * 3)
    assert counts.flops_train - counts.flops_matmul == attention
    # x + position needs a gradient, so both products with weights have all three passes
    assert counts.flops_matmul == 2 * (2 * 6 * 16 * 16 * 3)
    assert counts.params_matmul == 16 * 16 + (16 * 16 + 16)


def test_counting_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    count(MnistCnn(MnistCnn.Options(dropout=0.5)), 8, IMAGE)
    assert torch.equal(before, torch.get_rng_state())


def attention(dropout: float):
    def forward(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = model(batch[0])
        return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout, is_causal=True).mean((1, 2))

    return forward


def with_(function):
    """A loss whose hidden activations pass through `function`."""
    return lambda model, batch: function(model(batch[0])).mean((1, 2))


@pytest.mark.parametrize(
    ("loss", "draws"),
    [
        (with_(torch.relu), False),
        (with_(lambda x: F.dropout(x, 0.0)), False),
        (with_(lambda x: F.dropout(x, 0.5, training=False)), False),
        (with_(Dropout(0.5)), False),
        (with_(lambda x: F.dropout(x, 0.5)), True),
        (with_(nn.Dropout(0.1)), True),
        (with_(lambda x: F.alpha_dropout(x, 0.1, training=True)), True),
        (with_(lambda x: F.rrelu(x, training=True)), True),
        (with_(lambda x: x + 0.1 * torch.randn_like(x)), True),
        (with_(lambda x: x * (torch.rand(1) < 0.5)), True),
        (with_(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5))), True),
        (with_(lambda x: x[:, torch.randperm(x.shape[1])]), True),
        (attention(0.0), False),
        (attention(0.1), True),
    ],
)
def test_draws_of_a_models_own_are_noticed(loss, draws):
    task = task_of(lambda width: nn.Linear(4, width), loss)
    assert count(task, 8, example_of((np.zeros((1, 6, 4), np.float32),))).random_forward is draws


def test_the_built_in_tasks_draw_nothing_of_their_own():
    assert not count(MnistCnn(MnistCnn.Options(dropout=0.2)), 8, IMAGE).random_forward
    assert not count(Gpt(Gpt.Options()), 16, tokens(64)).random_forward


def test_an_initialisation_that_draws_is_not_the_forward():
    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, 4) + nn.init.trunc_normal_(torch.empty(width, 4)))

        def forward(self, x):
            return F.linear(x, self.weight)

    assert not count(
        task_of(Model, with_(torch.relu)), 8, example_of((np.zeros((1, 6, 4), np.float32),))
    ).random_forward


def test_a_loss_that_needs_real_numbers_is_refused_with_a_reason():
    task = task_of(
        lambda width: nn.Linear(4, width), lambda model, batch: model(batch[0]).mean(1) * model.weight.sum().item()
    )
    with pytest.raises(TaskError, match="meta device"):
        count(task, 4, example_of((np.zeros((1, 4), np.float32),)))


def test_peaks_by_device_name():
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_flops("NVIDIA A100 80GB PCIe", "bf16") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.5e12
    assert peak_flops("NVIDIA H200", "bf16") == 989.5e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA L4", "bf16") != peak_flops("NVIDIA L40S", "bf16")
    for unknown in ("cpu", "NVIDIA GeForce GTX 1080", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L400"):
        assert peak_flops(unknown, "bf16") is None
    assert peak_flops("NVIDIA H200", "fp32") is None


def test_the_convention_names_what_is_in_and_out():
    for word in ("forward + backward", "not halved", "no evaluation", "lookups free"):
        assert word in CONVENTION
