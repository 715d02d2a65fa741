"""How hyper-parameters tuned at the reference point carry over to other batch sizes and widths.

The batch rule acts on the whole optimizer (`scaled_optim`), the width rule on each tensor (`param_groups`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalespec.trainables.errors import TaskError
from scalespec.trainables.keys import choices_of
from scalespec.trainables.spec import OptimConfig

BATCH_RULES, WIDTH_RULES = choices_of(OptimConfig, "batch_rule"), choices_of(OptimConfig, "width_rule")


@dataclass(frozen=True)
class ScaledOptim:
    """The optimizer's hyper-parameters at the run's batch size, still at the reference width."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def scaled_optim(optim: OptimConfig) -> ScaledOptim:
    """Applies `optim.batch_rule` for κ = batch_size / reference.batch_size.

    * `sqrt`, for Adam: lr·√κ, betas^κ, eps/√κ (Malladi et al. 2022, https://arxiv.org/abs/2205.10287). The paper's
      1 − κ(1 − β) turns negative for large κ; β^κ agrees to first order and keeps the half-life in samples.
      Weight decay·√κ keeps AdamW's time scale batch/(lr·decay), in samples (https://arxiv.org/abs/2405.13698).
    * `linear`, for SGD: lr·κ (Goyal et al. 2017, https://arxiv.org/abs/1706.02677).
    * `none`: everything as it is.
    * `inverse_sqrt`, legacy: lr/√κ as a batch-size guide prints it, z = y·(old/new)^0.5. It lowers the rate as the batch
      grows, which for a mean-reduced loss is wrong; it is here to reproduce that guide and nothing else.

    Raises TaskError for an unknown rule, or for SGD under the width rule `mup`, whose rates are Adam's.
    """
    if optim.width_rule == "mup" and optim.name == "sgd":
        raise TaskError("optim.width_rule: mup is for adamw and adam; with sgd use inverse_sqrt_fan_in or none")
    kappa = optim.batch_size / optim.reference.batch_size
    lr, betas, eps, decay = optim.lr, optim.betas, optim.eps, optim.weight_decay
    if optim.batch_rule == "sqrt":
        root = math.sqrt(kappa)
        return ScaledOptim(lr * root, (betas[0] ** kappa, betas[1] ** kappa), eps / root, decay * root)
    if optim.batch_rule == "linear":
        return ScaledOptim(lr * kappa, betas, eps, decay)
    if optim.batch_rule == "inverse_sqrt":
        return ScaledOptim(lr / math.sqrt(kappa), betas, eps, decay)
    if optim.batch_rule == "none":
        return ScaledOptim(lr, betas, eps, decay)
    raise TaskError(f"optim.batch_rule: {optim.batch_rule!r} is not one of {', '.join(BATCH_RULES)}")


def param_groups(model: nn.Module, reference: nn.Module, rule: str, scaled: ScaledOptim) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, tensors of equal learning rate and weight decay together.

    `reference` is the same model at the reference width; only its shapes are used, so it may live on the meta device.
    With m = fan_in / fan_in of the same tensor in `reference`, the learning rate of a matrix or kernel is

    * `inverse_sqrt_fan_in`: lr/√m, proportional to the scale of the initialisation
      (https://github.com/jacobhilton/deep_learning_curriculum, chapter 2; Everett et al. 2024,
      https://arxiv.org/abs/2407.05872, give it as the prescription without alignment);
    * `mup`: lr/m, for Adam (Yang et al. 2022, https://arxiv.org/abs/2203.03466, table 3); needs `apply_width_init`;
    * `none`: lr.

    Embeddings and vectors keep lr, and so does the input layer, whose m is 1. Only tensors of two or more dimensions
    decay, each with a coefficient that keeps lr·decay at its value in `reference`.
    A group's `base_lr` is its peak rate: the loop sets lr = base_lr · multiplier.

    Raises TaskError for an unknown rule, models whose tensors do not correspond, or a tied head under `mup`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, m in _width_ratios(model, reference, rule).values():
        factor = {"inverse_sqrt_fan_in": 1 / math.sqrt(m), "mup": 1 / m, "none": 1.0}[rule]
        decay = scaled.weight_decay / factor if parameter.ndim >= 2 else 0.0
        groups.setdefault((scaled.lr * factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


@torch.no_grad()
def apply_width_init(model: nn.Module, reference: nn.Module, rule: str) -> None:
    """Rescales what `rule` wants to differ from an initialisation with variance ∝ 1/fan_in, in place.

    Under `mup` that is the output layer (fan_in grows with width, fan_out does not): its variance must fall as
    1/fan_in² (https://arxiv.org/abs/2203.03466, table 3). The model itself must initialise matrices with variance
    ∝ 1/fan_in and embeddings independently of width, as PyTorch's layers and `scalespec.trainables.tasks.gpt` do. The other rules
    change nothing. Raises TaskError as `param_groups` does.
    """
    shapes = dict(reference.named_parameters())
    for name, (parameter, m) in _width_ratios(model, reference, rule).items():
        if rule == "mup" and m != 1 and parameter.shape[0] == shapes[name].shape[0]:
            parameter.mul_(1 / math.sqrt(m))


def _width_ratios(model: nn.Module, reference: nn.Module, rule: str) -> dict[str, tuple[nn.Parameter, float]]:
    """Each parameter with its fan_in over that of the reference; 1 for embeddings and vectors."""
    if rule not in WIDTH_RULES:
        raise TaskError(f"optim.width_rule: {rule!r} is not one of {', '.join(WIDTH_RULES)}")
    embeddings, tied = _embeddings(model)
    if rule == "mup" and tied:
        raise TaskError(
            f"optim.width_rule: mup has no rule for the head that shares its tensor with the embedding {', '.join(tied)}; "
            "untie it or use inverse_sqrt_fan_in"
        )
    own, other = dict(model.named_parameters()), dict(reference.named_parameters())
    if differing := sorted(set(own) ^ set(other)):
        raise TaskError(f"the model has other tensors than at the reference width, such as {differing[0]}")
    ratios = {}
    for name, parameter in own.items():
        if parameter.ndim != other[name].ndim:
            raise TaskError(f"tensor {name} has another number of dimensions than at the reference width")
        plain = name in embeddings or parameter.ndim < 2
        ratios[name] = (parameter, 1.0 if plain else _fan_in(parameter) / _fan_in(other[name]))
    return ratios


def _fan_in(weight: Tensor) -> int:
    """Inputs that one output sums over, in PyTorch's layout (out, in, *kernel)."""
    return math.prod(weight.shape[1:])


def _embeddings(model: nn.Module) -> tuple[set[str], list[str]]:
    """Names of the embeddings' tensors, and of those that another layer uses as well."""
    owners: dict[Tensor, set[bool]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(isinstance(module, nn.Embedding | nn.EmbeddingBag))
    names = {name for name, parameter in model.named_parameters() if True in owners[parameter]}
    return names, sorted(name for name in names if False in owners[model.get_parameter(name)])
