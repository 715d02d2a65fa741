"""The optimizer of a run."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from scalespec.trainables.rules.scaling import ScaledOptim


def optimizer(name: str, groups: list[dict[str, Any]], optim: ScaledOptim) -> torch.optim.Optimizer:
    """adamw, adam or sgd over the groups of `scaling.param_groups`, fused. Raises ValueError for another name."""
    _without_compiler()
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, betas=optim.betas, eps=optim.eps, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.betas[0], fused=True)
    raise ValueError(f"optim.name {name!r} is not one of adamw, adam, sgd")


def step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` without the wrappers that load torch's compiler to break its graphs, and run hooks: there are none."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def _without_compiler() -> None:
    """Spares torch importing its compiler, two seconds in every process, only to note that optimizers are not compiled.

    The first call of each of these methods would import torch._dynamo and keep, under this name, the method marked for it
    (`torch/_compile.py`); nothing here is compiled, so the plain method does. Where torch changes, nothing happens.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)
