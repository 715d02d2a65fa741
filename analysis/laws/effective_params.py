"""The effective parameter count: the N for which Kaplan's L(N) gives the loss of a run, read from a smoothed loss.

The transform is steep (1 % of loss is 14 % of N), convex, and clamped at the entropy of text, so the order matters: smooth the
loss first, then transform. The mean of transformed batches is biased up by the noise (Jensen's inequality) and saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis.laws.law import Array, Law, positive
from scalespec.analysis.laws.power import fit_power

GPT2_TOKENIZERS = ("gpt2", "r50k_base", "p50k_base")
"""Byte-pair vocabularies of about 50,000 entries, trained on WebText or its like."""


@dataclass(frozen=True)
class Constants:
    """L(N) = (n_c/N)^exponent, trusted above the loss `entropy`."""

    n_c: float
    exponent: float
    entropy: float
    """Loss below which the count is clamped."""
    source: str


KAPLAN = Constants(
    n_c=8.8e13,  # non-embedding parameters, https://arxiv.org/abs/2001.08361, eq. 1.1
    exponent=0.076,
    entropy=1.69,  # Chinchilla's E, https://arxiv.org/abs/2203.15556; a floor pasted onto a law that has none
    source="Kaplan et al. 2020; entropy 1.69 from Hoffmann et al. 2022",
)


def require_text_in_nats(constants: Constants, *, kind: str, tokenizer: str | None, unit: str) -> None:
    """Raises ValueError where Kaplan's constants mean nothing: anything but nats a token of a GPT-2-like tokenizer."""
    if constants != KAPLAN:
        return
    if kind != "text":
        problem = f"the task is {kind}, not text"
    elif tokenizer not in GPT2_TOKENIZERS:
        problem = f"the tokenizer is {tokenizer!r}, not one of {', '.join(GPT2_TOKENIZERS)}"
    elif unit != "nats":
        problem = f"the loss is in {unit}, not in nats a token"
    else:
        return
    raise ValueError(
        f"effective parameters: {problem}, so Kaplan's constants do not apply; refit them from your own runs with `refit_constants`"
    )


def effective_params(loss: Any, constants: Constants = KAPLAN) -> Array:
    """N_eff = exp(ln n_c − ln max(L, entropy)/exponent), elementwise."""
    loss = np.asarray(loss, dtype=np.float64)
    return np.asarray(np.exp(np.log(constants.n_c) - np.log(np.maximum(loss, constants.entropy)) / constants.exponent))


def ema(values: Any, decay: float = 0.9) -> Array:
    """Bias-corrected exponential moving average [T]: the first value is itself, not a share of zero.

    `decay` 0.9 keeps 90 % of the old average a step. Correction as in https://arxiv.org/abs/1412.6980, section 3.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: {decay} is outside [0, 1)")
    out = np.empty(len(values))
    average = 0.0
    for step, value in enumerate(np.asarray(values, dtype=np.float64)):
        average = decay * average + (1 - decay) * value
        out[step] = average / (1 - decay ** (step + 1))
    return out


@dataclass(frozen=True)
class EffectiveParams:
    """Both readings of one loss curve."""

    of_ema: Array
    """[T] transform of the smoothed loss: the one to use."""
    ema_of_batches: Array
    """[T] smoothed transform of single batches: the one to avoid."""
    clamped_ema: float
    """Share of steps at which the smoothed loss is at or below the entropy."""
    clamped_batches: float
    """Share of batches at or below the entropy."""
    inflation: float
    """ema_of_batches / of_ema − 1 at the end: what the noise of single batches adds."""


def read_curve(losses: Any, constants: Constants = KAPLAN, decay: float = 0.9) -> EffectiveParams:
    """N_eff along a curve of batch losses [T], both ways. Raises ValueError on losses that are not positive numbers."""
    losses = positive("losses", losses)
    if not len(losses):
        raise ValueError("losses: the curve is empty")
    smooth = ema(losses, decay)
    of_ema = effective_params(smooth, constants)
    batches = ema(effective_params(losses, constants), decay)
    return EffectiveParams(
        of_ema=of_ema,
        ema_of_batches=batches,
        clamped_ema=float((smooth <= constants.entropy).mean()),
        clamped_batches=float((losses <= constants.entropy).mean()),
        inflation=float(batches[-1] / of_ema[-1] - 1),
    )


def refit_constants(n: Any, loss: Any, **options: Any) -> tuple[Constants, Law]:
    """Constants of a study's own runs: L = (n_c/N)^exponent fitted to its finished runs, trusted down to its lowest loss.

    `options` as in `fit_power`. Raises ValueError where the runs are too few for a law, or do not improve with N.
    """
    loss = positive("loss", loss)
    law = fit_power(n, loss, variable="n", floor=False, **options)
    if not law.params:
        raise ValueError(
            f"effective parameters: {law.n_points} runs are too few to refit the constants; six are needed"
        )
    if law.diagnostics["at_bound"]:
        raise ValueError(
            "effective parameters: the loss of these runs does not fall with N, so N cannot be read from it"
        )
    return Constants(law["x_c"], law["gamma"], float(loss.min()), f"refitted from {law.n_used} runs"), law


@dataclass(frozen=True)
class StudyReading:
    """The effective parameters of the runs with most data, beside the parameters that they have."""

    constants: Constants
    refused: str
    """Why Kaplan's constants do not apply; empty where they do."""
    table: pd.DataFrame
    """One row a size: width, params (embedding excluded), loss (average of the training loss), n_eff_ema, and where every batch
    was read too: n_eff_batches, n_eff_clamped_ema, n_eff_clamped_batches."""

    @property
    def inflation(self) -> float:
        """By what share the reading of batches exceeds that of the average, the median over sizes; NaN where there is none."""
        if "n_eff_batches" not in self.table:
            return float("nan")
        return float((self.table["n_eff_batches"] / self.table["n_eff_ema"] - 1).median())


def read_study(runs: pd.DataFrame, curves: pd.DataFrame, *, kind: str, tokenizer: str | None) -> StudyReading:
    """N_eff of the finished runs with most data: with Kaplan's constants where they apply, else with constants refitted from them.

    `runs` and `curves` have the columns of `analysis.tables`; `kind` is text or the name of another task. Raises ValueError
    where too few runs have finished to refit.
    """
    done = runs[(runs["status"] == "done") & runs["train_loss_ema"].notna()]
    most = done[done["samples"] >= 0.999 * done["samples"].max()] if len(done) else done
    n = (most["params_total"] - most["params_embedding"]).to_numpy(dtype=np.float64)
    loss = most["train_loss_ema"].to_numpy(dtype=np.float64)
    constants, refused = KAPLAN, ""
    try:
        require_text_in_nats(KAPLAN, kind=kind, tokenizer=tokenizer, unit="nats")
    except ValueError as error:
        refused = str(error)
        constants, _ = refit_constants(n, loss, families=list(most["family_key"]), resamples=0, influence=False)
    table = pd.DataFrame({"width": most["width"].to_numpy(), "params": n, "loss": loss})
    table["n_eff_ema"] = effective_params(loss, constants)
    names = ("n_eff_batches", "n_eff_clamped_ema", "n_eff_clamped_batches")
    recorded = curves[curves["metric"].isin(names)].sort_values("step")
    if not refused and len(recorded):
        last = recorded.pivot_table(index="run_key", columns="metric", values="value", aggfunc="last")
        table = table.join(last.reindex(most["run_key"]).reset_index(drop=True))
    return StudyReading(constants, refused, table.groupby("width", as_index=False).mean())
