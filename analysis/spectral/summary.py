"""One line a checkpoint from the rows of its layers: summaries that survive outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalespec.analysis.spectral.esd import WW

MAX_ALPHA = 8.0
"""alpha_trimmed leaves out what lies above: WeightWatcher's own advice, though random matrices reach below it."""

BY = ("run_key", "step", "profile")
MEANS = ("alpha_weighted", "log_norm", "log_spectral_norm", "log_alpha_norm", "stable_rank", "mp_softrank")
NUMBERS = ("alpha", "alpha_ks2", "alpha_hill", "num_evals", *MEANS)
READ = (*BY, "layer", "status", "trusted", "why", "content", *NUMBERS)
"""Columns of `analysis.tables.SPECTRA` that a summary reads."""


def summaries(layers: pd.DataFrame, by: Sequence[str] = BY) -> pd.DataFrame:
    """One row a checkpoint, in the order of `by`, with the columns of `analysis.tables.SPECTRA_SUMMARY`.

    A layer enters medians unless a check failed: trusted, or trust not computed. Of tied tensors (equal `content`) the first
    counts. `ww_*` and `mean_*` are WeightWatcher's plain means over every layer that it would report.
    """
    frame = layers.reindex(columns=[*dict.fromkeys((*by, *READ))])
    tied = frame["content"].notna() & frame.duplicated([*by, "content"])
    frame = frame[~tied].reset_index(drop=True)
    numbers = frame[list(NUMBERS)].apply(pd.to_numeric, errors="coerce").astype(float)
    groups = frame.groupby(list(by), sort=True, dropna=False)
    at, out = groups.ngroup(), groups.size().rename("n_total").reset_index()
    ok, rest = frame["status"] == "ok", frame["status"] == "failed_fit"
    used = ok & ~frame["trusted"].eq(False).fillna(False).astype(bool)
    fitted = numbers["num_evals"].notna() & (ok | rest)
    out["n_used"] = _over(used.astype(float), at, "sum").astype(int)
    for name in ("alpha", "alpha_ks2"):
        out[f"{name}_median"] = _over(numbers[name][used], at, "median")
        out[f"{name}_trimmed"] = _over(numbers[name][used & (numbers[name] <= MAX_ALPHA)], at, "mean")
    for name, q in (("alpha_q25", 0.25), ("alpha_q75", 0.75)):
        out[name] = _over(numbers["alpha"][used], at, "quantile", q)
    out["alpha_hill_median"] = _over(numbers["alpha_hill"], at, "median")
    watched = fitted & (frame["profile"] == WW)
    out["ww_mean_alpha"] = _over(numbers["alpha"].where(ok, -1.0)[watched], at, "mean")
    for name in MEANS:
        out[f"mean_{name}"] = _over(numbers[name][fitted], at, "mean")
    why = frame["why"].where(ok, frame["status"].astype("string").str.replace("_", " "))
    out["reasons"] = _reasons(why[~used], at).reindex(out.index)
    return out


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The line of one checkpoint, without run and step, from rows of one profile; what no layer has is None."""
    frame = pd.DataFrame([dict(row) for row in rows])
    if frame.empty:
        return {"profile": None, "n_used": 0, "n_total": 0}
    line = summaries(frame, by=("profile",)).iloc[0].to_dict()
    return {str(name): None if pd.isna(value) else value for name, value in line.items()}


def _over(values: pd.Series, at: pd.Series, what: str, *more: float) -> pd.Series:
    """A statistic of each group; missing where a group has no value."""
    known = values.dropna()
    found: pd.Series = getattr(known.groupby(at[known.index]), what)(*more)
    return found.reindex(range(int(at.max()) + 1 if len(at) else 0))


def _reasons(why: pd.Series, at: pd.Series) -> pd.Series:
    """Why layers were left out, the most frequent first, those as frequent in the order in which they come."""
    each = why.dropna().astype(object).str.split("; ").explode()
    each = each[each != ""]
    found = pd.DataFrame({"group": at[each.index].to_numpy(), "reason": each.to_numpy(), "first": np.arange(len(each))})
    counts = found.groupby(["group", "reason"], sort=False)["first"].agg(["size", "min"]).reset_index()
    counts = counts.sort_values(["group", "size", "min"], ascending=[True, False, True])
    said = counts["reason"] + " ×" + counts["size"].astype(str)
    return said.groupby(counts["group"]).agg("; ".join)
