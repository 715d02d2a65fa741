"""A model under its optimizer: one update at a time, and a state that is stored tensor by tensor.

An update depends on the weights, the optimizer's slots and (seed, step), on nothing else: neither on how the run got here
nor, but for the rounding of sums, on the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from scalespec.trainables.evals.validation import autocast, to_device
from scalespec.trainables.group import Group
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.rules import dropout, scaling
from scalespec.trainables.rules.dropout import Place
from scalespec.trainables.rules.optimizer import optimizer, step
from scalespec.trainables.skeleton import skeleton
from scalespec.trainables.spec import RunSpec
from scalespec.trainables.streams import seeded


class Learner:
    """The model of a run at step 0, on this worker's device."""

    def __init__(self, spec: RunSpec, prepared: Prepared, group: Group) -> None:
        self.spec, self.task, self.data, self.group = spec, prepared.task, prepared.data, group
        self.optim = scaling.scaled_optim(spec.optim)
        self.model = self._built()
        self.parameters = dict(self.model.named_parameters())
        self.random_forward = prepared.counts(spec.width).random_forward
        self._dropouts = dropout.layers_of(self.model)
        self._wrapped: nn.Module = self.model
        if group.world > 1:
            ids = [group.device.index] if group.device.type == "cuda" else None
            self._wrapped = nn.parallel.DistributedDataParallel(
                self.model, device_ids=ids, gradient_as_bucket_view=True
            )
        self._wrapped.train()

    def _built(self) -> nn.Module:
        spec, rule = self.spec, self.spec.optim.width_rule
        torch.manual_seed(seeded(spec.seed, "init"))
        model = self.task.build(spec.width)
        reference = skeleton(self.task, spec.optim.reference.width)
        scaling.apply_width_init(model, reference, rule)
        model.to(self.group.device)
        self.optimizer = optimizer(
            spec.optim.name, scaling.param_groups(model, reference, rule, self.optim), self.optim
        )
        return model

    def update(self, at: int, batch: np.ndarray, scale: float) -> tuple[Tensor, Tensor]:
        """Update number `at` (from 0) on the global batch of examples `batch`, at `scale` times the peak learning rate.

        Returns this worker's training loss and the norm of the global gradient before clipping, both on the device.
        """
        spec, group = self.spec, self.group
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = parameters["base_lr"] * scale
        share = len(batch) // group.world
        rows = batch[group.rank * share : (group.rank + 1) * share]
        inputs = to_device(self.data.train, rows, group.device)
        place = Place(spec.seed, at, group.rank * share, share, len(batch))
        if self.random_forward:
            _seed(seeded(spec.seed, "dropout", at, group.rank), group.device)
        with dropout.placed(self._dropouts, place), autocast(group.device, spec.train.precision):
            loss = self.task.losses(self._wrapped, inputs).loss_B.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if spec.optim.grad_clip is None else spec.optim.grad_clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

    def weights(self) -> dict[str, Tensor]:
        """Parameters, a tied one once, and buffers, by name."""
        return {**self.parameters, **dict(self.model.named_buffers())}

    def state(self) -> dict[str, Tensor]:
        """`model.<name>` and `optim.<name>.<slot>`: optimizer slots are named after their parameters."""
        tensors = {f"model.{name}": value.detach() for name, value in self.weights().items()}
        for name, parameter in self.parameters.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optim.{name}.{slot}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the values of `state`; other names are left alone."""
        own = self.weights()
        self.optimizer.state.clear()
        fused = bool(self.optimizer.defaults.get("fused"))
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "model":
                own[rest].copy_(value)
            elif kind == "optim":
                name, _, slot = rest.rpartition(".")
                parameter = self.parameters[name]
                # Adam's `step` stays on the CPU unless the fused kernel keeps it beside the weights
                placed = value.to(parameter.device) if value.ndim or fused else value
                self.optimizer.state[parameter][slot] = placed


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generator that torch's dropout draws from; `torch.manual_seed` also visits every other backend, 1.4 ms a step."""
    generator = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
    generator.manual_seed(seed)
