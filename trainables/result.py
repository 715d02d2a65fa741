"""The columns of `result.json`: what a finished or diverged run is in the tables."""

from __future__ import annotations

import math
import platform
import statistics
from typing import Any

from scalespec.trainables.evals import validation
from scalespec.trainables.group import device_name
from scalespec.trainables.io import ValRows
from scalespec.trainables.meters import EMA
from scalespec.trainables.rules import flops
from scalespec.trainables.training import Training


def columns(training: Training, status: str, error: str | None, val: ValRows | None) -> dict[str, Any]:
    """The result of a training as it stands. Every worker calls it, since one column is a mean over them."""
    spec, data, group = training.spec, training.prepared.data, training.group
    counts = training.prepared.counts(spec.width)
    rates = [rate for rate in training.rate.rates if math.isfinite(rate)]
    rate = statistics.median(rates) if rates else None
    device = device_name(group.device)
    peak = flops.peak_flops(device, spec.train.precision)
    per_sample = counts.flops_train / data.samples_per_example
    ema = group.mean(training.loss.average.clone()).item() / (1 - EMA ** max(1, training.step))
    examples = training.step * spec.optim.batch_size
    return {
        "status": status,
        "error": error,
        "steps": training.step,
        "samples": training.samples,
        "unique_samples": min(examples, training.batches.prefix) * data.samples_per_example,
        "params_total": counts.params_total,
        "params_embedding": counts.params_embedding,
        "params_matmul": counts.params_matmul,
        "flops_train": training.flops,
        "flops_6nd": 6.0 * counts.params_matmul * training.samples,
        "flops_matmul": float(examples * counts.flops_matmul),
        "flops_causal": float(examples * counts.flops_causal),
        "flops_convention": flops.CONVENTION,
        **validation.val_columns(val),
        "train_loss_ema": ema if math.isfinite(ema) else None,
        "lr": training.learner.optim.lr,
        "precision": spec.train.precision,
        "device": f"{device} ({platform.machine()})" if device == "cpu" else device,
        "workers": group.world,
        "samples_per_s": rate,
        "mfu": per_sample * rate / (peak * group.world) if peak and rate else None,
        "duration_s": training.elapsed(),
    }
