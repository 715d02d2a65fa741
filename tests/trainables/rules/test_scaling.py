from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalespec.trainables.errors import TaskError
from scalespec.trainables.rules.scaling import apply_width_init, param_groups, scaled_optim
from scalespec.trainables.spec import OptimConfig, Reference
from scalespec.trainables.tasks.gpt import Gpt
from scalespec.trainables.tasks.mnist_cnn import MnistCnn

REFERENCE_BATCH = 16


def optim(kappa: float = 1, **changes) -> OptimConfig:
    config = OptimConfig(
        lr=2e-3,
        batch_size=round(kappa * REFERENCE_BATCH),
        reference=Reference(width=16, batch_size=REFERENCE_BATCH),
        betas=(0.9, 0.999),
        weight_decay=0.1,
    )
    return dataclasses.replace(config, **changes)


def test_square_root_rule_at_twice_the_batch():
    scaled = scaled_optim(optim(2))
    assert scaled.lr == pytest.approx(2e-3 * 1.41421356)
    assert scaled.betas == pytest.approx((0.81, 0.998001))
    assert scaled.eps == pytest.approx(1e-8 / 1.41421356)
    assert scaled.weight_decay == pytest.approx(0.1 * 1.41421356)


@pytest.mark.parametrize("kappa", [0.25, 2, 16, 64])
def test_square_root_rule_keeps_what_it_promises(kappa):
    """Half-lives and AdamW's time scale in samples, and 0 < β < 1 where the linear form of the map has long failed."""
    base, scaled = scaled_optim(optim()), scaled_optim(optim(kappa))
    for before, after in zip(base.betas, scaled.betas):
        assert 0 < after < 1
        assert kappa / math.log(after) == pytest.approx(1 / math.log(before))
    assert kappa / (scaled.lr * scaled.weight_decay) == pytest.approx(1 / (base.lr * base.weight_decay))


def test_other_batch_rules():
    base = scaled_optim(optim())
    assert scaled_optim(optim(4, batch_rule="linear")).lr == pytest.approx(4 * base.lr)
    assert scaled_optim(optim(4, batch_rule="none")) == base
    assert scaled_optim(optim(4, batch_rule="inverse_sqrt")).lr == pytest.approx(base.lr / 2)


@pytest.mark.parametrize("rule", ["sqrt", "linear", "none", "inverse_sqrt"])
def test_at_the_reference_batch_nothing_changes(rule):
    config = optim(batch_rule=rule)
    scaled = scaled_optim(config)
    assert (scaled.lr, scaled.betas, scaled.eps, scaled.weight_decay) == (2e-3, (0.9, 0.999), 1e-8, 0.1)


def adam_on_noisy_quadratic(rule: str, kappa: int, repeats: int = 2, dimensions: int = 200) -> np.ndarray:
    """log10 of mean x² at 8 equally spaced points of 128,000 samples; per-sample gradient x + 30·noise."""
    config = optim(kappa, batch_rule=rule, betas=(0.98, 0.999))
    scaled = scaled_optim(config)
    rng = np.random.default_rng(7)
    steps = 128_000 // config.batch_size
    beta1, beta2 = scaled.betas
    x = np.ones((repeats, dimensions))
    mean, square = np.zeros_like(x), np.zeros_like(x)
    points = []
    for step in range(1, steps + 1):
        gradient = x + 30 / math.sqrt(config.batch_size) * rng.standard_normal(x.shape)
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        x = x - scaled.lr * (mean / (1 - beta1**step)) / (np.sqrt(square / (1 - beta2**step)) + scaled.eps)
        if step % (steps // 8) == 0:
            points.append(np.log10(np.mean(x**2)))
    return np.array(points)


def test_square_root_rule_gives_equal_trajectories_on_a_noisy_quadratic():
    """Equal samples, batch 16 and 256: the rule stays within a twentieth or so of a decade, the inverted one is off by one."""
    base = adam_on_noisy_quadratic("none", 1)
    error = {rule: np.abs(adam_on_noisy_quadratic(rule, 16) - base).mean() for rule in ("sqrt", "none", "inverse_sqrt")}
    assert error["sqrt"] < 0.1
    assert error["none"] > 5 * error["sqrt"]
    assert error["inverse_sqrt"] > error["none"]


def on_meta(build, width):
    with torch.device("meta"):
        return build(width)


def rates(model: nn.Module, reference: nn.Module, rule: str, config: OptimConfig | None = None) -> dict[str, dict]:
    groups = param_groups(model, reference, rule, scaled_optim(config or optim()))
    return {
        name: group for name, p in model.named_parameters() for group in groups if any(p is q for q in group["params"])
    }


@pytest.mark.parametrize(("rule", "power"), [("inverse_sqrt_fan_in", 0.5), ("mup", 1.0), ("none", 0.0)])
def test_rates_of_the_cnn(rule, power):
    build = MnistCnn(MnistCnn.Options()).build
    lr = {name: group["lr"] / 2e-3 for name, group in rates(build(64), on_meta(build, 16), rule).items()}
    assert lr["conv1.weight"] == 1
    assert lr["conv2.weight"] == lr["linear.weight"] == 4**-power
    assert all(value == 1 for name, value in lr.items() if name.endswith("bias"))


@pytest.mark.parametrize(("rule", "power"), [("inverse_sqrt_fan_in", 0.5), ("mup", 1.0)])
def test_rates_of_the_gpt(rule, power):
    build = Gpt(Gpt.Options()).build
    model = build(64)
    found = rates(model, on_meta(build, 16), rule)
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name in ("token_embedding.weight", "position_embedding.weight")
        assert found[name]["base_lr"] == found[name]["lr"] == 2e-3 * (1 if plain else 4**-power)
        # decay only on matrices, and lr·decay as at the reference width
        assert found[name]["lr"] * found[name]["weight_decay"] == pytest.approx(2e-4 if parameter.ndim >= 2 else 0)


def test_groups_hold_every_parameter_once_and_are_few():
    build = Gpt(Gpt.Options(layers=6)).build
    model = build(64)
    groups = param_groups(model, on_meta(build, 16), "inverse_sqrt_fan_in", scaled_optim(optim()))
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    assert len(groups) == 3
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("rule", ["inverse_sqrt_fan_in", "mup", "none"])
def test_at_the_reference_width_nothing_changes(rule):
    build = Gpt(Gpt.Options()).build
    model = build(32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_width_init(model, on_meta(build, 32), rule)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {group["lr"] for group in rates(model, on_meta(build, 32), rule).values()} == {2e-3}


def test_mup_rescales_the_output_layer_alone():
    build = Gpt(Gpt.Options()).build
    model = build(64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_width_init(model, on_meta(build, 16), "mup")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"head.weight"}
    torch.testing.assert_close(model.head.weight, before["head.weight"] / 2)


def test_tied_head_is_scaled_as_an_embedding_and_refused_under_mup():
    build = Gpt(Gpt.Options(tied=True)).build
    model, reference = build(64), on_meta(build, 16)
    assert rates(model, reference, "inverse_sqrt_fan_in")["token_embedding.weight"]["lr"] == 2e-3
    for refused in (
        lambda: param_groups(model, reference, "mup", scaled_optim(optim())),
        lambda: apply_width_init(model, reference, "mup"),
    ):
        with pytest.raises(TaskError, match=r"mup.*token_embedding\.weight.*untie"):
            refused()


def test_bad_rules_and_models_are_refused():
    build = Gpt(Gpt.Options()).build
    with pytest.raises(TaskError, match=r"optim\.batch_rule"):
        scaled_optim(optim(batch_rule="cube"))
    with pytest.raises(TaskError, match=r"optim\.width_rule.*sgd"):
        scaled_optim(optim(name="sgd", width_rule="mup"))
    with pytest.raises(TaskError, match=r"optim\.width_rule"):
        param_groups(build(16), build(16), "cube", scaled_optim(optim()))
    with pytest.raises(TaskError, match="other tensors"):
        param_groups(build(16), Gpt(Gpt.Options(layers=3)).build(16), "none", scaled_optim(optim()))


# -- the coordinate check (https://github.com/microsoft/mup): activations must neither grow nor fade with width -----------


def without_readout(model: nn.Module, name: str) -> nn.Module:
    """With a zero readout, which removes the part of the output that fades by design."""
    nn.init.zeros_(model.get_parameter(name))
    return model


def mlp(width: int) -> nn.Module:
    layers = (nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8, bias=False))
    return without_readout(nn.Sequential(*layers), "4.weight")


def mlp_loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
    x, y = torch.randn(64, 32, generator=generator), torch.randint(0, 8, (64,), generator=generator)
    return F.cross_entropy(model(x), y)


GPT = Gpt(Gpt.Options(context=16, head_dim=32, vocab=64))


def gpt(width: int) -> nn.Module:
    return without_readout(GPT.build(width), "head.weight")


def gpt_loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
    return GPT.losses(model, (torch.randint(0, 64, (8, 17), generator=generator),)).loss_B.mean()


def coordinate_slopes(
    build, loss, layers, widths, rule: str, lr: float, steps: int = 4, seeds: int = 3
) -> dict[str, float]:
    """Slope of log mean|x| against log width for the outputs of `layers`, in the forward pass after `steps` updates."""
    sizes = np.empty((seeds, len(widths), len(layers)))
    for seed in range(seeds):
        for column, width in enumerate(widths):
            torch.manual_seed(seed)
            model, reference = build(width), on_meta(build, widths[0])
            apply_width_init(model, reference, rule)
            groups = param_groups(model, reference, rule, scaled_optim(optim(lr=lr, weight_decay=0.0)))
            optimizer = torch.optim.Adam(groups)
            for _ in range(steps):
                loss(model, torch.Generator().manual_seed(100 + seed)).backward()
                optimizer.step()
                optimizer.zero_grad()
            for row, layer in enumerate(layers):
                model.get_submodule(layer).register_forward_hook(
                    lambda _module, _inputs, out, at=(seed, column, row): sizes.__setitem__(at, out.abs().mean().item())
                )
            loss(model, torch.Generator().manual_seed(100 + seed))
    slopes = np.polyfit(np.log(widths), np.log(sizes.mean(0)), 1)[0]
    return dict(zip(layers, slopes.tolist()))


MLP_CHECK = (mlp, mlp_loss, ("0", "2", "4"), (64, 128, 256, 512, 1024))
GPT_CHECK = (gpt, gpt_loss, ("blocks.0", "blocks.1.attention_out", "blocks.1", "head"), (32, 64, 128, 256))


@pytest.mark.parametrize("check", [MLP_CHECK, GPT_CHECK], ids=["mlp", "gpt"])
def test_coordinate_check_passes_under_mup(check):
    slopes = coordinate_slopes(*check, rule="mup", lr=3e-3)
    assert all(abs(slope) < 0.1 for slope in slopes.values()), slopes


@pytest.mark.parametrize("check", [MLP_CHECK, GPT_CHECK], ids=["mlp", "gpt"])
def test_coordinate_check_fails_without_a_rule(check):
    """The negative control: with the same rate at every width the output grows."""
    slopes = coordinate_slopes(*check, rule="none", lr=3e-3)
    assert max(slopes.values()) > 0.3, slopes
