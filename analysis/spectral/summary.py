"""From the rows of layers to one line a checkpoint, for many checkpoints at once: a study of 10,000 runs has 60,000 of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scalespec.analysis.spectral.esd import WW, Array

MAX_ALPHA = 8.0
"""alpha_trimmed leaves out what lies above: WeightWatcher's own advice, though random matrices reach below it."""

MEANS = ("alpha_weighted", "log_norm", "log_spectral_norm", "log_alpha_norm", "stable_rank", "mp_softrank")

NUMBERS = ("alpha", "alpha_ks2", "alpha_hill", "num_evals", *MEANS)

USED = ("profile", "status", "trusted", "why", "content", *NUMBERS)
"""The columns that a summary is made of."""

Columns = Mapping[str, Sequence[Any]]


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One checkpoint's line of `analysis.tables.SPECTRA_SUMMARY`, without run and step, from rows of one profile.

    See `summaries`.
    """
    rows = list(rows)
    columns = {name: [row.get(name) for row in rows] for name in USED}
    found = summaries(columns, [0] * len(rows), 1)
    return {name: values[0] for name, values in found.items()}


def summaries(columns: Columns, group: Sequence[int] | Array, count: int) -> dict[str, list[Any]]:
    """The lines of `count` checkpoints as columns; `group` is the checkpoint [0 … count − 1] of each row.

    A layer enters medians unless a check failed: trusted, or trust not computed. Of tied tensors (equal `content`) the first
    counts. `ww_*` and `mean_*` are WeightWatcher's plain means over every layer that it would report. None where nothing has
    the number.
    """
    first = _once(columns["content"], group)
    groups = np.asarray(group, dtype=np.int64)[first]
    texts = {name: [columns[name][at] for at in first] for name in ("profile", "status", "trusted", "why")}
    numbers = {name: np.array([columns[name][at] for at in first], dtype=np.float64) for name in NUMBERS}
    status = np.array([str(value) for value in texts["status"]], dtype=object)
    ok = status == "ok"
    enters = ok & np.array([_missing(value) or bool(value) for value in texts["trusted"]], dtype=bool)
    fitted = ~np.isnan(numbers["num_evals"]) & (ok | (status == "failed_fit"))
    profile: list[Any] = [None] * count
    for at in range(len(first) - 1, -1, -1):
        profile[groups[at]] = texts["profile"][at]

    def some(name: str, mask: Any) -> _Groups:
        mask = mask & ~np.isnan(numbers[name])
        return _Groups(numbers[name][mask], groups[mask], count)

    out: dict[str, Any] = {
        "profile": profile,
        "n_used": np.bincount(groups[enters], minlength=count).tolist(),
        "n_total": np.bincount(groups, minlength=count).tolist(),
    }
    for name in ("alpha", "alpha_ks2"):
        out[f"{name}_median"] = some(name, enters).median()
        out[f"{name}_trimmed"] = some(name, enters & (numbers[name] <= MAX_ALPHA)).mean()
    for name, q in (("alpha_q25", 0.25), ("alpha_q75", 0.75)):
        out[name] = some("alpha", enters).quantile(q)
    out["alpha_hill_median"] = some("alpha_hill", True).median()
    plain = np.where(ok, numbers["alpha"], -1.0)
    theirs = _Groups(plain[fitted], groups[fitted], count).mean()
    out["ww_mean_alpha"] = [value if whose == WW else None for value, whose in zip(theirs, profile)]
    for name in MEANS:
        out[f"mean_{name}"] = some(name, fitted).mean()
    out["reasons"] = _reasons(np.flatnonzero(~enters), groups, texts, count)
    return out


class _Groups:
    """Numbers of groups, in the order of their rows."""

    def __init__(self, values: Array, groups: Array, count: int) -> None:
        order = np.argsort(groups, kind="stable")
        self.values, self.groups = values[order], groups[order]
        self.counts = np.bincount(groups, minlength=count)
        self.starts = np.cumsum(self.counts) - self.counts
        self.some = self.counts > 0

    def mean(self) -> list[float | None]:
        """To the last digit numpy's mean of each group: groups of one size are the rows of a matrix."""
        found = np.empty(len(self.counts))
        for size in np.unique(self.counts[self.some]):
            at = np.flatnonzero(self.counts == size)
            found[at] = self.values[self.starts[at, None] + np.arange(size)].mean(axis=1)
        return self._listed(found[self.some])

    def median(self) -> list[float | None]:
        ordered = self._ordered()
        low, high = ((self.counts[self.some] - 1) // 2, self.counts[self.some] // 2)
        starts = self.starts[self.some]
        return self._listed((ordered[starts + low] + ordered[starts + high]) / 2)

    def quantile(self, q: float) -> list[float | None]:
        """Linear between neighbours, as numpy has it."""
        place = (self.counts[self.some] - 1) * q
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, self.counts[self.some] - 1)
        ordered, starts, share = self._ordered(), self.starts[self.some], place - low
        a, b = ordered[starts + low], ordered[starts + high]
        return self._listed(np.where(share < 0.5, a + (b - a) * share, b - (b - a) * (1 - share)))

    def _ordered(self) -> Array:
        ordered: Array = self.values[np.lexsort((self.values, self.groups))]
        return ordered

    def _listed(self, found: Array) -> list[float | None]:
        out: list[float | None] = [None] * len(self.counts)
        for at, value in zip(np.flatnonzero(self.some).tolist(), found.tolist()):
            out[at] = value
        return out


def _once(content: Sequence[Any], group: Sequence[int] | Array) -> list[int]:
    """The rows that count."""
    seen: set[tuple[int, Any]] = set()
    out = []
    for at, (whose, key) in enumerate(zip(group, content)):
        if _missing(key) or (whose, key) not in seen:
            out.append(at)
            seen.add((whose, key))
    return out


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _reasons(left_out: Array, groups: Array, texts: Columns, count: int) -> list[str | None]:
    """Why layers were left out, the commonest reason first."""
    found: dict[int, Counter[str]] = {}
    for at in left_out.tolist():
        counter = found.setdefault(int(groups[at]), Counter())
        if texts["status"][at] != "ok":
            counter[str(texts["status"][at]).replace("_", " ")] += 1
        else:
            why = "" if _missing(texts["why"][at]) else str(texts["why"][at])
            counter.update(reason for reason in why.split("; ") if reason)
    said = {at: "; ".join(f"{reason} ×{times}" for reason, times in c.most_common()) for at, c in found.items()}
    return [said.get(at) or None for at in range(count)]
