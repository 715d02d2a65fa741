"""Kaplan's effective parameters of a running training loss: the N for which his L(N) gives that loss.

Read twice as a run goes on: of the moving average of the loss, and as the moving average over single batches. The second is
biased up by the noise of batches (the transform is convex) and saturates; it is recorded to show by how much. The same
transform on arrays, with other constants too, is `analysis.laws.effective_params`.
"""

from __future__ import annotations

import torch
from torch import Tensor

N_C, EXPONENT = 8.8e13, 0.076  # L = (N_C / N)^EXPONENT, https://arxiv.org/abs/2001.08361, eq. 1.1
ENTROPY = 1.69  # https://arxiv.org/abs/2203.15556, the floor of its law
TOKENIZERS = ("gpt2", "r50k_base", "p50k_base")
"""The constants hold in nats a token of these; of bytes, images or another vocabulary they say nothing."""


def applies(unit: str, tokenizer: str | None) -> bool:
    """Whether the constants mean anything for a task whose samples are `unit`."""
    return unit == "tokens" and tokenizer in TOKENIZERS


def effective_params(loss: Tensor) -> Tensor:
    """N_eff, elementwise: (max(loss, ENTROPY))^(−1/EXPONENT) · N_C."""
    return N_C * torch.clamp(loss, min=ENTROPY) ** (-1 / EXPONENT)
