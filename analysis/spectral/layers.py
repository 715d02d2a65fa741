"""From a tensor to rows: fused tensors split, contents named, costs known."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scalespec.analysis.spectral.analyze import Row, analyze
from scalespec.analysis.spectral.esd import WW, Array
from scalespec.analysis.spectral.trust import MIN_EVALS

FUSED_QKV = re.compile(
    r"(?:^|[._/])(?:c_attn|in_proj|in_proj_weight|qkv|qkv_proj|Wqkv|w_qkv|attn_qkv|to_qkv)(?:\.weight|\.kernel)?$"
)
"""Names under which query, key and value are stacked one after another. `query_key_value` (GPT-NeoX, BLOOM) is not among
them: it alternates head by head, and the number of heads is not in the weights."""

ROW_S, VERDICT_S, GRAM_S, EIG_S = 0.002, 0.008, 4e-11, 1.35e-10
"""Seconds of a row, of the bootstrap of a verdict, of a multiplication in a Gram product, and of the eigenvalues over M³: from
`python benchmarks/spectra.py` on a Xeon of 2.x GHz."""

NULL_S = 5e-6
"""Seconds to draw the null of a shape, over M² (0.3 s for M = 256, 2.2 s for 768 on the same Xeon)."""


class Part(NamedTuple):
    """A matrix-bearing tensor of its own within a stored tensor."""

    layer: str
    weight: Array
    kind: str


def parts(layer: str, weight: Array, kind: str) -> list[Part]:
    """What `native` analyses apart: query, key and value of a fused tensor, the experts of a 3-D dense tensor.

    In a fused tensor the other dimension is the width of the query (heads × head size = model width); what remains is halved
    between key and value, so grouped queries split too.
    """
    if kind == "dense" and weight.ndim == 3:
        return [part for e, expert in enumerate(weight) for part in parts(f"{layer}[{e}]", expert, kind)]
    if weight.ndim == 2 and FUSED_QKV.search(layer):
        axis = int(weight.shape[1] > weight.shape[0])
        width, total = weight.shape[1 - axis], weight.shape[axis]
        rest = total - width
        if 0 < rest <= 2 * width and rest % 2 == 0:
            pieces = np.split(weight, (width, width + rest // 2), axis=axis)
            return [Part(f"{layer}[{name}]", piece, kind) for name, piece in zip("qkv", pieces)]
    return [Part(layer, weight, kind)]


def layer_rows(
    layer: str, weight: Array, *, kind: str, profile: str = WW, pool: bool = True, **options: Any
) -> list[Row]:
    """The rows of one stored tensor with their `layer` names: one, or under `native` one a part with its content hash.

    pool=False, of `ww-0.7.7`: one row a kernel position of a 2-D convolution. `init` and `previous` are split like the tensor.
    Other options are those of `analyze`.
    """
    if profile == WW:
        positions: Iterable[int | None] = [None] if pool or kind != "conv2d" else range(math.prod(weight.shape[2:]))
        return [
            {"layer": layer if at is None else f"{layer}:{at}"}
            | analyze(weight, kind=kind, profile=profile, position=at, **options)
            for at in positions
        ]
    init, previous = (
        None if reference is None else parts(layer, reference, kind)
        for reference in (options.pop("init", None), options.pop("previous", None))
    )
    rows = []
    for at, part in enumerate(parts(layer, weight, kind)):
        row = analyze(
            part.weight,
            kind=part.kind,
            profile=profile,
            init=None if init is None else init[at].weight,
            previous=None if previous is None else previous[at].weight,
            **options,
        )
        rows.append({"layer": part.layer, **row, "content": content_key(part.weight)})
    return rows


def content_key(weight: Array) -> str:
    """Equal for equal tensors: tied weights within a checkpoint, frozen ones across checkpoints."""
    digest = hashlib.blake2b(repr((weight.shape, weight.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def cost(shape: Sequence[int], kind: str, decompositions: int = 4) -> float:
    """Seconds that a layer takes on one CPU thread, about: what to sort, pack and plan by.

    decompositions: of its matrices; four with the shuffle, the distance from initialisation and the last update.
    """
    count, long, short = matrices(shape, kind)
    rows = count if kind == "dense" else 1
    fixed = ROW_S + (VERDICT_S if short * (count // rows) >= MIN_EVALS else 0.0)
    return float(rows * fixed + decompositions * count * short**2 * (GRAM_S * long + EIG_S * short))


def null_cost(count: int, short: int) -> float:
    """Seconds that drawing the null of `count` matrices with M = short takes, about; the next layer of the shape finds it drawn."""
    return NULL_S * count * short**2


def memory(shape: Sequence[int], kind: str) -> int:
    """Bytes that analysing one layer may need beside the process itself: an upper bound.

    The tensor in float64, its shuffle with the words that are sorted, and a few M × M matrices; a rank-deficient matrix takes
    two copies more for its singular values.
    """
    count, long, short = matrices(shape, kind)
    return 8 * (count * long * short * 5 + 6 * short**2) + 2**26


def matrices(shape: Sequence[int], kind: str) -> tuple[int, int, int]:
    """(count, N, M): how many matrices a tensor of this shape holds, their larger and their smaller dimension."""
    if len(shape) < 2:
        return 1, max(1, math.prod(shape)), 1
    if kind == "dense" or len(shape) == 2:
        count, a, b = math.prod(shape[:-2]), shape[-2], shape[-1]
    else:
        count, a, b = math.prod(shape[2:]), shape[0], shape[1]
    return count, max(a, b), min(a, b)
