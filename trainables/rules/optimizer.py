"""The optimizer of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from scalespec.trainables.rules.scaling import ScaledOptim


def optimizer(name: str, groups: list[dict[str, Any]], optim: ScaledOptim) -> torch.optim.Optimizer:
    """adamw, adam or sgd over the groups of `scaling.param_groups`, fused. Raises ValueError for another name."""
    if name == "adamw":
        return _plain(torch.optim.AdamW)(groups, betas=optim.betas, eps=optim.eps, fused=True)
    if name == "adam":
        return _plain(torch.optim.Adam)(groups, betas=optim.betas, eps=optim.eps, fused=True)
    if name == "sgd":
        return _plain(torch.optim.SGD)(groups, lr=optim.lr, momentum=optim.betas[0], fused=True)
    raise ValueError(f"optim.name {name!r} is not one of adamw, adam, sgd")


def step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` without the wrappers that load torch's compiler to break its graphs, and run hooks: there are none."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def _plain(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A class of torch's with the methods below as they are written, without the marks that keep the compiler out of them.

    The first call of a marked method imports torch._dynamo, two seconds in every process (`torch/_compile.py`). Nothing
    here is compiled. Where a later torch has no marks, the methods are the same.
    """
    marked = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    return type(kind.__name__, (kind,), {name: inspect.unwrap(getattr(kind, name)) for name in marked})
