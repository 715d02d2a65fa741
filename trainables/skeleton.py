"""A model without its numbers: names, shapes and kinds of layers on the meta device, in milliseconds at any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from scalespec.trainables.task import Task


def skeleton(task: Task, width: int) -> nn.Module:
    """`task.build(width)` on the meta device. Nothing is allocated or drawn; the caller's random state is left alone."""
    with on_meta(), _Undrawn():  # type: ignore[no-untyped-call]
        return task.build(width)


@contextmanager
def on_meta() -> Iterator[None]:
    """The meta device as default, the caller's random state untouched."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def draws(operation: Any) -> bool:
    """Whether an operator takes numbers from a random generator, by PyTorch's own tags."""
    return torch.Tag.nondeterministic_seeded in operation.tags


class _Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves out what fills a tensor with random numbers, which a tensor without numbers does not need.

    PyTorch has the meta form of some of these (`normal_`) in Python only, and that form imports torch's compiler.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the default would import the compiler, two seconds, to be told so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if draws(func) and func._schema.is_mutable:
            return args[0]
        return func(*args, **(kwargs or {}))
