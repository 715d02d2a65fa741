"""Validation: the loss of every example, its halves, and what a table shows of them. Uses no random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from scalespec.trainables.evals.seam import Context, Eval, Measured
from scalespec.trainables.group import Group
from scalespec.trainables.io import ValRows
from scalespec.trainables.task import Dataset, Task

HALVES_SEED = 20260101
"""Of the permutation that halves the validation set; fixed for ever, so that selection and report never mix."""

EVAL_BATCH = 256
"""Examples in an evaluation batch; fixed, since the last bits of a sum depend on it."""


def to_device(arrays: tuple[np.ndarray, ...], at: np.ndarray, device: torch.device) -> tuple[Tensor, ...]:
    """The examples `at`, as a batch."""
    return tuple(torch.from_numpy(np.ascontiguousarray(a[at])).to(device, non_blocking=True) for a in arrays)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass: bf16 where that is the run's precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def evaluate(
    task: Task, model: nn.Module, data: Dataset, group: Group, precision: str, beat: Callable[[], None] = lambda: None
) -> ValRows:
    """Losses of every validation example, each computed by one worker. Leaves the model in training mode."""
    count = data.val_examples
    results = torch.zeros(2, count, dtype=torch.float64, device=group.device)
    has_correct = True
    model.eval()
    for first in range(group.rank * EVAL_BATCH, count, group.world * EVAL_BATCH):
        at = np.arange(first, min(first + EVAL_BATCH, count))
        with autocast(group.device, precision):
            losses = task.losses(model, to_device(data.val, at, group.device))
        results[0, at[0] : at[-1] + 1] = losses.loss_B.double()
        has_correct = losses.correct_B is not None
        if losses.correct_B is not None:
            results[1, at[0] : at[-1] + 1] = losses.correct_B.double()
        beat()
    model.train()
    loss, correct = group.total(results).cpu().numpy()
    return ValRows(loss, correct if has_correct else None, select_half(count))


def _validate(task: Task, model: nn.Module, data: Dataset, context: Context) -> Measured:
    rows = evaluate(task, model, data, context.group, context.spec.train.precision, context.beat)
    metrics = {"val_loss": float(rows.loss.mean())}
    if rows.correct is not None:
        metrics["val_accuracy"] = float(rows.correct.mean())
    return Measured(metrics, rows=rows)


VALIDATION = Eval("validation", "checkpoint", _validate)
"""`val_loss` and `val_accuracy` of the whole validation split, wherever weights are kept."""


def select_half(count: int) -> np.ndarray:
    """True for the validation examples in the selection half: a fixed permutation, the same for every study."""
    permutation = np.random.Generator(np.random.PCG64(HALVES_SEED)).permutation(count)
    half = np.zeros(count, dtype=bool)
    half[permutation[: count // 2]] = True
    return half


def val_columns(val: ValRows | None) -> dict[str, float | None]:
    names = ("val_loss", "val_loss_select", "val_loss_report")
    if val is None:
        return dict.fromkeys([*(f"{name}{suffix}" for name in names for suffix in ("", "_se")), "val_accuracy"])
    out: dict[str, float | None] = {}
    everything = np.ones(len(val.loss), dtype=bool)
    for name, rows in zip(names, (everything, val.select, ~val.select), strict=True):
        losses = val.loss[rows]
        out[name] = float(losses.mean()) if len(losses) else None
        out[f"{name}_se"] = float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else None
    out["val_accuracy"] = None if val.correct is None else float(val.correct.mean())
    return out
