"""Text that a language model writes, at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalespec.trainables import media
from scalespec.trainables.data.tokenizer import tokenizer
from scalespec.trainables.errors import TaskError
from scalespec.trainables.evals.seam import Context, Eval, Measured
from scalespec.trainables.evals.validation import autocast
from scalespec.trainables.task import Dataset

PROMPT, NEW = 16, 32
"""Tokens given and tokens drawn."""


def samples(task: Any, model: nn.Module, data: Dataset, context: Context) -> Measured:
    """The first tokens of a few validation windows, each continued by tokens drawn from the model's own distribution.

    For tasks with the options `context` and `vocab` whose model turns ids (B, T) into logits (B, T, V). The last tokens that
    fit the context are read anew for each token drawn: dear for a large model, milliseconds for those of a study's size.
    """
    if context.group.rank:
        return Measured()
    vocab, decode = _words(context.spec.data.tokenizer or "bytes", task.options.vocab)
    ids = np.ascontiguousarray(data.val[0][: context.examples, :PROMPT]).astype(np.int64)
    prompts_BT = torch.from_numpy(ids).to(context.group.device)
    with autocast(context.group.device, context.spec.train.precision):
        written_BT = continued(model, prompts_BT, NEW, task.options.context, vocab, context.seed).cpu()
    pairs = ((row[: ids.shape[1]].tolist(), row[ids.shape[1] :].tolist()) for row in written_BT)
    lines = [f"{decode(prompt)} ▸ {decode(rest)}" for prompt, rest in pairs]
    return Measured(media=[media.text("samples", "\n\n".join(lines) + "\n")])


def _words(name: str, vocab: int) -> tuple[int, Callable[[Sequence[int]], str]]:
    """How many ids of a model's vocabulary mean something, and what they mean; numbers where no tokenizer can be had."""
    try:
        found = tokenizer(name)
    except TaskError:  # tokens that were prepared elsewhere can be trained on without their tokenizer
        return vocab, lambda ids: " ".join(map(str, ids))
    return min(vocab, found.vocab), found.decode


def continued(model: nn.Module, ids_BT: Tensor, new: int, context: int, vocab: int, seed: int) -> Tensor:
    """`new` more ids for each row, drawn one after another from the softmax of the logits of the first `vocab` ids.

    The draws are made on the CPU from a generator of their own, so they are the same wherever the logits are.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(new):
        logits_BV = model(ids_BT[:, -context:])[:, -1, :vocab].float().cpu()
        drawn_B1 = torch.multinomial(logits_BV.softmax(1), 1, generator=generator)
        ids_BT = torch.cat([ids_BT, drawn_B1.to(ids_BT.device)], 1)
    return ids_BT


SAMPLES = Eval("samples", "last", samples, examples=2, shows=True)
