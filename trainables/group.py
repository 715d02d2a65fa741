"""This process among the DDP workers: the few collectives that the loop needs, and none where it is alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """This process among the DDP workers."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def current(cls) -> Group:
        """The group that torch.distributed was initialised with, or a single process."""
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)

    def mean(self, values: Tensor) -> Tensor:
        """`values` averaged over the workers."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def total(self, values: Tensor) -> Tensor:
        """`values` summed over the workers."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, value: int) -> int:
        """Rank 0's value, on every worker."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(box, 0)
        return int(box.item())


def device_name(device: torch.device) -> str:
    """A name for the `device` column."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
