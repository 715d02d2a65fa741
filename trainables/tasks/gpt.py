"""A GPT-2-style decoder over width: pre-norm blocks, GELU, learned positions, causal attention.

With `GPT2_SMALL` and width 768 it is GPT-2 small: 124,475,904 parameters.
Shape suffixes: B windows, T tokens, D width, H heads, K head dimension, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from scalespec.trainables.data import text
from scalespec.trainables.data.tokenizer import tokenizer
from scalespec.trainables.errors import TaskError
from scalespec.trainables.evals.samples import SAMPLES
from scalespec.trainables.evals.seam import Eval
from scalespec.trainables.keys import key
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Dataset, Losses

WIDTH_MULTIPLE = 8
"""Of widths and head dimensions, for the sake of kernels."""
SMALL, SMALL_MULTIPLE = 16, 2
"""Widths below SMALL have one head and any even number: where data are few, the best models of small budgets are that small."""
VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to this multiple, which keeps the head's matmul on the fast path."""


@dataclass(frozen=True)
class Options:
    """The model at every width; defaults are a small byte-level model."""

    layers: int = key("Blocks.", default=2, born=2, least=1, most=10_000)
    context: int = key("Tokens that a window predicts.", default=64, born=64, unit="tokens", least=1, most=2**24)
    head_dim: int = key(
        "Wanted head dimension; the nearest that divides the width is taken.", default=16, born=16, least=1, most=2**24
    )
    vocab: int = key(
        "Token ids of the tokenizer; the embedding is padded beyond it, and the padding is not predicted.",
        default=256,
        born=256,
        least=1,
        most=2**24,
    )
    biases: bool = key("Whether linear layers and norms have biases.", default=True, born=True)
    tied: bool = key("Whether the output head is the token embedding.", default=False, born=False)


GPT2_SMALL = Options(layers=12, context=1024, head_dim=64, vocab=50257, biases=True, tied=True)
"""Radford et al. 2019, https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf"""


def heads(width: int, head_dim: int) -> int:
    """Number of heads: their dimension is the multiple of 8 that divides `width` and is nearest in ratio to `head_dim`.

    Where `head_dim` divides the width that is `head_dim` itself; ties go to more heads. Widths below 16 have one.
    """
    if width < SMALL:
        return 1
    sizes = [size for size in range(WIDTH_MULTIPLE, width + 1, WIDTH_MULTIPLE) if width % size == 0]
    return width // min(sizes, key=lambda size: (abs(math.log(size / head_dim)), size))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, options: Options) -> None:
        super().__init__()
        self.heads = heads(width, options.head_dim)
        self.norm1 = nn.LayerNorm(width, bias=options.biases)
        self.qkv = nn.Linear(width, 3 * width, bias=options.biases)
        self.attention_out = nn.Linear(width, width, bias=options.biases)
        self.norm2 = nn.LayerNorm(width, bias=options.biases)
        self.mlp_in = nn.Linear(width, 4 * width, bias=options.biases)
        self.mlp_out = nn.Linear(4 * width, width, bias=options.biases)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention_out(self._attention(self.norm1(x_BTD)))
        # the exact form: the tanh form of GPT-2 differs by less than 1e-3 and takes four times as long on a CPU
        hidden_BTF = F.gelu(self.mlp_in(self.norm2(x_BTD)))
        out_BTD: Tensor = x_BTD + self.mlp_out(hidden_BTF)
        return out_BTD

    def _attention(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y_BHTK: Tensor = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return y_BHTK.transpose(1, 2).reshape(B, T, D)


class Decoder(nn.Module):
    """Token ids (B, T) to logits (B, T, V padded)."""

    def __init__(self, width: int, options: Options) -> None:
        super().__init__()
        vocab = -(-options.vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.token_embedding = nn.Embedding(vocab, width)
        self.position_embedding = nn.Embedding(options.context, width)
        self.blocks = nn.ModuleList(Block(width, options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(width, bias=options.biases)
        self.head = nn.Linear(width, vocab, bias=False)
        if options.tied:
            self.head.weight = self.token_embedding.weight
        self._initialise(width, options)

    def _initialise(self, width: int, options: Options) -> None:
        """GPT-2's N(0, 0.02²) at width 768, with residual projections divided by √(2·layers).

        Matrices follow width as 1/√fan_in from there (the standard parametrisation, https://arxiv.org/abs/2203.03466,
        table 3; https://arxiv.org/abs/2407.05872), embeddings do not; a tied head is an embedding.
        """
        std = 0.02 * math.sqrt(768 / width)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            elif name in ("token_embedding.weight", "position_embedding.weight"):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * options.layers))
            else:
                nn.init.normal_(parameter, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.token_embedding(ids_BT) + self.position_embedding.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV


class Gpt:
    """Language modelling: windows of `context` + 1 tokens, each token predicted from those before it."""

    VERSION: ClassVar[int] = 1
    Options: ClassVar[type] = Options
    UNIT: ClassVar[str] = "tokens"
    evals: ClassVar[tuple[Eval, ...]] = (SAMPLES,)

    def __init__(self, options: Any) -> None:
        self.options: Options = options

    @staticmethod
    def round_width(width: float) -> int:
        """The nearest multiple of 8, below 16 of 2. Width transfer (muP) wants multiples of `head_dim`; see `heads`."""
        multiple = WIDTH_MULTIPLE if width >= SMALL else SMALL_MULTIPLE
        return max(multiple, math.floor(width / multiple + 0.5) * multiple)

    def load(self, data: DataConfig) -> Dataset:
        """Windows of the text; see `trainables.data.text.load`. The default tokenizer is `bytes`.

        Raises TaskError where the tokenizer has more ids than the option `vocab`.
        """
        found = tokenizer(data.tokenizer or "bytes")
        if found.vocab > self.options.vocab:
            raise TaskError(
                f"data.tokenizer: {found.name} has {found.vocab} ids but the model's vocabulary is {self.options.vocab}; "
                f"set the task's option vocab to {found.vocab}"
            )
        return text.load(data, found, self.options.context)

    def build(self, width: int) -> nn.Module:
        """A decoder with the options of the task."""
        return Decoder(width, self.options)

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        """Mean loss of each window of (B, T + 1) token ids, and out of training the share of tokens predicted correctly."""
        ids = batch[0].long()
        B, T = ids.shape[0], ids.shape[1] - 1
        logits: Tensor = model(ids[:, :-1]).flatten(0, 1)
        if logits.shape[1] > self.options.vocab:
            logits = logits[:, : self.options.vocab]
        targets = ids[:, 1:].reshape(-1)
        loss_B = F.cross_entropy(logits, targets, reduction="none").view(B, T).mean(1)
        if model.training:
            return Losses(loss_B, None)
        return Losses(loss_B, (logits.argmax(1) == targets).float().view(B, T).mean(1))
