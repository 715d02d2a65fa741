"""Parameters and FLOPs of a task at a width, counted by running one example on the meta device.

Nothing is allocated or computed, so a count takes milliseconds at any size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from scalespec.trainables.errors import TaskError
from scalespec.trainables.skeleton import draws, on_meta, skeleton
from scalespec.trainables.task import Task

CONVENTION = (
    "executed forward + backward FLOPs of matmuls, convolutions and attention (2 per multiply-add), from step 0; "
    "attention not halved for the causal mask, output head included, embedding lookups free, "
    "no gradient to the input, no recomputation, no evaluation"
)
"""What `flops_train` counts, in words."""

Example = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
"""Shape (without the batch) and dtype of one example in each array of a dataset."""


@dataclass(frozen=True)
class Counts:
    """Sizes of a model, and FLOPs of one training example (forward and backward)."""

    params_total: int
    """All parameters, a tied tensor once."""
    params_embedding: int
    """Parameters of embeddings. A tied tensor is both this and the head in `params_matmul`."""
    params_matmul: int
    """N: tensors of two or more dimensions that enter a matmul or convolution, the head once even if tied."""
    flops_train: int
    """By `CONVENTION`."""
    flops_matmul: int
    """`flops_train` without the products of two activations (attention scores, and scores times values)."""
    flops_causal: int
    """`flops_train` with those products halved, as a causal mask allows."""
    random_forward: bool = False
    """Whether the model draws random numbers of its own while training, as torch's dropout does; `rules.dropout` does not.
    What each worker draws differs, so that numbers then depend on how many there are."""


def example_of(arrays: Sequence[np.ndarray]) -> Example:
    """Shape and dtype of one example, from the arrays of a split."""
    return tuple((array.shape[1:], array.dtype) for array in arrays)


def count(task: Task, width: int, example: Example) -> Counts:
    """Counts for `task` at `width`, per example.

    Raises TaskError where the model or its loss needs real numbers and so cannot run on the meta device.
    """
    with on_meta():
        try:
            model = skeleton(task, width)
            batch = tuple(torch.empty((1, *shape), dtype=_torch_dtype(dtype)) for shape, dtype in example)
            with sdpa_kernel(SDPBackend.MATH), _Tally(model) as tally:
                loss = task.losses(model.train(), batch).loss_B.mean()
                tally.in_forward = False
                torch.autograd.backward(loss)
        except (NotImplementedError, RuntimeError) as error:
            name, reason = type(task).__name__, str(error).partition("\n")[0]
            raise TaskError(
                f"task {name} cannot be counted: {reason}; build() and losses() must run on the meta device"
            ) from error
    named = dict(model.named_parameters())
    embeddings = {
        weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for weight in m.parameters()
    }
    return Counts(
        params_total=sum(p.numel() for p in named.values()),
        params_embedding=sum(p.numel() for p in embeddings),
        params_matmul=sum(named[name].numel() for name in tally.multiplied),
        flops_train=tally.total,
        flops_matmul=tally.total - tally.attention,
        flops_causal=tally.total - tally.attention // 2,
        random_forward=tally.random,
    )


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up FLOPs by PyTorch's own formulas, tells products with a weight from those of two activations, notices draws.

    A tensor counts as a weight if it is a parameter, a view of one, or computed from weights alone (a cast, a transpose,
    a weight norm).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.attention = 0
        self.random = False
        self.multiplied: set[str] = set()
        self.in_forward = True
        self._alive: list[Tensor] = []
        """Keeps the derived weights alive, so that no storage's identity is used twice."""
        self._weights = {_storage(p): frozenset([name] if p.ndim >= 2 else []) for name, p in model.named_parameters()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the default would import the compiler, two seconds, to be told so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.random |= self.in_forward and draws(func)
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        inputs = [value for value in args if isinstance(value, Tensor)]
        if operation in flop_registry:
            flops = _flops(operation, args, kwargs or {}, out)
            self.total += flops
            if self.in_forward:
                self._attribute(operation, inputs, flops)
        elif self.in_forward and inputs and all(_storage(value) in self._weights for value in inputs):
            sources = frozenset().union(*(self._weights[_storage(value)] for value in inputs))
            for result in out if isinstance(out, tuple | list) else (out,):
                if isinstance(result, Tensor):
                    self._weights[_storage(result)] = sources
                    self._alive.append(result)
        return out

    def _attribute(self, operation: Any, inputs: list[Tensor], flops: int) -> None:
        names = [self._weights.get(_storage(value), frozenset()) for value in inputs]
        used = frozenset().union(*names)
        self.multiplied |= used
        if not used:
            # Each factor that needs a gradient costs one more product of the same size in the backward pass.
            factors = inputs[1:3] if operation in _ADDS_FIRST else inputs[:2]
            self.attention += flops * (1 + sum(factor.requires_grad for factor in factors))


_ADDS_FIRST = (torch.ops.aten.addmm, torch.ops.aten.baddbmm)


def _flops(operation: Any, args: Any, kwargs: Any, out: Any) -> int:
    if operation is torch.ops.aten.convolution_backward:
        # PyTorch's formula for the gradient of a grouped kernel is `groups` times too large; each of the two gradients
        # repeats the forward pass's multiplications.
        grad_out, inputs, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
        forward: int = conv_flop_count(list(inputs.shape), list(weight.shape), list(grad_out.shape), transposed)
        return (int(wanted[0]) + int(wanted[1])) * forward
    return int(flop_registry[operation](*args, **kwargs, out_val=out))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


# Dense bf16 peaks in FLOP/s from NVIDIA's data sheets; the first pattern that matches wins.
# A100: https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf
# H100 (sparse figures halved): https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
# H200: https://resources.nvidia.com/en-us-data-center-overview-mc/en-us-data-center-overview/hpc-datasheet-sc23-h200
# L4, L40S: https://www.nvidia.com/en-us/data-center/l4/ and https://www.nvidia.com/en-us/data-center/l40s/
_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bA100\b", 312e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100 NVL\b", 835e12),
    (r"\bH100\b", 989.5e12),
    (r"\bH200 NVL\b", 835.5e12),
    (r"\bH200\b", 989.5e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of one device in FLOP/s, the denominator of MFU; None where it is not known.

    Known for bf16 only (for fp32 it depends on whether TF32 is allowed), and not for a share of a card (MIG).
    """
    if precision != "bf16" or "MIG" in device_name:
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, device_name)), None)
