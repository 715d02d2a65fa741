"""What N and C may mean, and how much an exponent depends on it.

The same runs give N_opt ∝ C^.37 to C^.70 by bookkeeping alone, so a law names its convention and a study shows all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis.laws.bootstrap import of_law
from scalespec.analysis.laws.chinchilla import cost_exponents, fit_chinchilla
from scalespec.analysis.laws.law import Law, Param
from scalespec.analysis.laws.study import usable

N_CONVENTIONS = {
    "all parameters": ("params_total", None),
    "embedding excluded": ("params_total", "params_embedding"),
    "matrices and head": ("params_matmul", None),
}
"""Convention → the column, and the one to subtract."""
C_CONVENTIONS = {
    "6ND": None,
    "counted, without attention": "flops_matmul",
    "counted, attention halved": "flops_causal",
    "counted, with attention": "flops_train",
}
"""Convention → the column; 6ND is recomputed with the N of the row."""


def sensitivity(
    runs: pd.DataFrame, *, target: str = "val_loss", resamples: int = 200, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """One row a convention for N and C: alpha, beta, and the exponent of N_opt in C with its interval and status.

    `runs` has the columns of `analysis.tables.RUNS`. A convention whose column is missing or not positive is left out.
    """
    good, _ = usable(runs, target)
    rows = []
    d = good["samples"].to_numpy(dtype=np.float64)
    loss = good[target].to_numpy(dtype=np.float64)
    for n_name, (column, less) in N_CONVENTIONS.items():
        n = _column(good, column)
        if n is None or (less is not None and less not in good):
            continue
        if less is not None:
            n = n - good[less].to_numpy(dtype=np.float64)
        if not len(n) or (n <= 0).any():
            continue
        law = fit_chinchilla(
            n,
            d,
            loss,
            families=list(good["family_key"]),
            resamples=resamples,
            seed=seed,
            level=level,
            influence=False,
        )
        for c_name, c_column in C_CONVENTIONS.items():
            c = 6 * n * d if c_column is None else _column(good, c_column)
            if law.params and c is not None and (c > 0).all():
                rows.append(_row(law, n_name, c_name, size_exponent(law, n, d, c)))
    return pd.DataFrame(rows)


def size_exponent(law: Law, n: Any, d: Any, c: Any) -> Param:
    """The exponent of N_opt in C where C = k·N^s·D^t fits the table: β/(sβ + tα), from a law fitted with any count."""
    s, t, _, _ = cost_exponents(n, d, c)

    def of(alpha: Any, beta: Any) -> Any:
        return beta / (s * beta + t * alpha)

    value, lo, hi = (float(x[0]) for x in of_law(law, lambda p: of(p["alpha"], p["beta"]), log=False))
    return Param(value) if np.isnan(lo) else Param(value, lo, hi)


def _row(law: Law, n_name: str, c_name: str, exponent: Param) -> dict[str, Any]:
    return {
        "N": n_name,
        "C": c_name,
        "alpha": law["alpha"],
        "beta": law["beta"],
        "n_opt_exponent": exponent.value,
        "lo": exponent.lo,
        "hi": exponent.hi,
        "status": " ".join(sorted(law.status)),
    }


def _column(runs: pd.DataFrame, name: str) -> Any:
    return runs[name].to_numpy(dtype=np.float64) if name in runs else None


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer as Chinchilla's table A9 lists it."""

    d_model: int
    ffw_size: int
    kv_size: int
    n_heads: int
    n_layers: int
    vocabulary: int = 32_000
    context: int = 2048

    @property
    def width(self) -> int:
        """Heads times key size: the inner width of attention."""
        return self.kv_size * self.n_heads

    def params(self) -> int:
        """All weights, with biases, norms and relative positions; the tied embedding once, as the head."""
        d, width, ffw = self.d_model, self.width, self.ffw_size
        attention = 3 * (d * width + width) + width * d + d
        relative_positions = d * width + 2 * width
        mlp = 2 * d * ffw + ffw + d
        norms = 4 * d
        return self.n_layers * (attention + relative_positions + mlp + norms) + 2 * d + d * self.vocabulary

    def flops_per_sequence(self) -> int:
        """Forward and backward FLOP of one sequence, https://arxiv.org/abs/2203.15556, appendix F, softmax included.

        Embedding and logits are left out: only so does the count give the ratios to 6ND of the paper's table A4, although
        appendix F lists both (https://github.com/karpathy/nanoGPT/blob/master/scaling_laws.ipynb).
        """
        t, d, width = self.context, self.d_model, self.width
        projections = 2 * t * d * width * 4
        scores_and_values = 2 * (2 * t * t * width)
        softmax = 3 * self.n_heads * t * t
        mlp = 2 * t * 2 * d * self.ffw_size
        return 3 * self.n_layers * (projections + scores_and_values + softmax + mlp)
