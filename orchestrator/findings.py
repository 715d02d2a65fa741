"""What a study found, in sentences: the headings of its report. Every number in them comes with its interval or its count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.laws import Law, Param
from analysis.laws.backtest import Backtest
from analysis.laws.study import C, D, N
from analysis.plots.axes import count, flop
from analysis.spectral import fit_columns


@dataclass(frozen=True)
class Unit:
    """What the task's samples are called, and so its loss."""

    sample: str = "sample"
    """token | image; `sample` for a task that cannot be asked."""

    @property
    def loss(self) -> str:
        return "nats" if self.sample == "sample" else f"nats per {self.sample}"


def range_of(param: Param, digits: int = 2) -> str:
    """`0.54 [0.21, 0.88]`; the estimate alone where there is no interval."""
    if param.lo is None or param.hi is None:
        return f"{param.value:.{digits}f}"
    return f"{param.value:.{digits}f} [{param.lo:.{digits}f}, {param.hi:.{digits}f}]"


def power(base: str, param: Param, sign: str = "") -> Markup:
    """`C^0.54 [0.21, 0.88]` with the exponent raised."""
    value, _, ends = range_of(param).partition(" ")
    return Markup("{}<sup>{}{}</sup> {}").format(base, sign, value, ends) if ends else Markup("{}<sup>{}{}</sup>").format(base, sign, value)


def doubt(law: Law) -> str:
    """A clause for a law that is not clean; empty for one that is."""
    words = {
        "at_bound": "a parameter is at its bound",
        "did_not_move": "the optimizer never left its start",
        "flat_basin": "other exponents fit almost as well",
        "too_few_points": "too few points",
        "too_narrow": "the range is too narrow",
        "not_converged": "the fit did not converge",
    }
    return ", ".join(said for status, said in words.items() if status in law.status)


def headline(states: Mapping[str, int], law: Law | None) -> Markup:
    """The study in one sentence."""
    if not states.get("done"):
        return Markup("No run finished, so there is nothing to fit")
    if law is None:
        return Markup("The runs do not determine a scaling law")
    said = Markup("Loss falls as {} and {}").format(power("N", law.params["alpha"], "−"), power("D", law.params["beta"], "−"))
    return said + (Markup(", but {}").format(doubt(law)) if doubt(law) else Markup(""))


def compared(named: Sequence[tuple[str, Law | None]]) -> Markup:
    """How the exponent of the best size changes between combinations of the further axes."""
    known = [(label, law.params["a"]) for label, law in named if law is not None]
    if not known:
        return Markup("The runs do not determine a scaling law")
    if len(known) == 1:
        return Markup("The best model size grows as {} ({}); the other settings gave no law").format(power("C", known[0][1]), known[0][0])
    apart = max(param.value for _, param in known) - min(param.value for _, param in known)
    clear = any(_above(p, q) for _, p in known for _, q in known)
    said = "more than" if clear else "no more than"
    return Markup("The exponent of the best model size differs by {:.2f} between {} settings, {} its intervals allow").format(
        apart, len(known), said
    )


def _above(p: Param, q: Param) -> bool:
    return p.lo is not None and q.hi is not None and p.lo > q.hi


def status(states: Mapping[str, int]) -> str:
    """How the grid came out."""
    total, bad = sum(states.values()), {state: n for state, n in states.items() if state != "done" and n}
    if not total:
        return "No run has a result yet"
    if not bad:
        return f"All {total} runs finished" if total > 1 else "The one run finished"
    return f"{states.get('done', 0)} of {total} runs finished, " + ", ".join(f"{n} {state}" for state, n in bad.items())


def curves(good: pd.DataFrame, unit: Unit) -> Markup:
    if good.empty:
        return Markup("No run finished; the curves show how far each came")
    losses, compute = good["val_loss"], good[C]
    spread = compute.max() / compute.min()
    over = f" over a factor of {count(spread)} in compute" if spread > 1.05 else ""
    ends = f"from {losses.max():.3g} to {losses.min():.3g}" if len(good) > 1 else f"{losses.min():.3g}"
    return Markup("Final losses {} {} {}{}").format("run" if len(good) > 1 else "is", ends, unit.loss, over)


def surface(law: Law | None) -> Markup:
    if law is None:
        return Markup("Final losses against data and size; no law was fitted")
    said = Markup("The law misses the losses by {:.2g} % on average").format(100 * law.diagnostics["mape"])
    noise = law.diagnostics.get("seed_noise_sd")
    return said + (Markup("; seeds differ by {:.2g} %").format(100 * noise) if noise else Markup(""))


def frontier(size: Law | None, loss: Law | None, whole: Law | None) -> Markup:
    if size is not None:
        said = Markup("The best model size grows as {}").format(power("C", size.params["a"]))
        if loss is not None:
            said += Markup(", the best loss falls towards E as {}").format(power("C", loss.params["gamma"], "−"))
        return said
    if whole is not None:
        name = "n_opt_exponent" if "n_opt_exponent" in whole.params else "a"
        return Markup("By the law for L(N, D) the best model size grows as {}; no frontier was seen in the runs").format(
            power("C", whole.params[name])
        )
    return Markup("The runs show no compute-efficient frontier")


def budgets(laws: Sequence[Law]) -> tuple[int, int]:
    """How many compute budgets have their best size between two others, and how many were looked at."""
    found = next((law.diagnostics for law in laws if law.form == "n_opt"), {})
    bracketed = len(found.get("points", {}).get("c", ()))
    return bracketed, bracketed + sum(map(len, found.get("not_bracketed", {}).values()))


def isoflop(laws: Sequence[Law]) -> Markup:
    bracketed, total = budgets(laws)
    if not bracketed:
        return Markup("No compute budget has its best size between two others")
    return Markup("{} of {} compute budgets have their best size between two others").format(bracketed, total)


def accuracy(good: pd.DataFrame) -> Markup:
    share = 100 * good["val_accuracy"].dropna()
    return Markup("Validation accuracy runs from {:.1f} to {:.1f} %").format(share.min(), share.max())


def backtest(tests: Sequence[Backtest]) -> Markup:
    """Names the holdout that asks most, and whether the law beats what needs no law."""
    if not tests:
        return Markup("No runs could be held out to test the law")
    scores: Mapping[str, Any] = max(tests, key=lambda test: test.ratio).scores()
    name, best = min(scores["baselines"].items(), key=lambda item: item[1])
    verdict = "better than" if scores["mape"] < best else "no better than"
    return Markup("Held out, {} is missed by {:.2g} % (bias {:+.2g} %): {} the best baseline, {} ({:.2g} %)").format(
        scores["name"], 100 * scores["mape"], 100 * scores["bias"], verdict, name, 100 * best
    )


def drift(rolling: Sequence[Backtest]) -> Markup:
    if len(rolling) < 2:
        return Markup("Too few budgets to watch the coefficients move")
    first, last = (test.law.params["alpha"].value for test in (rolling[0], rolling[-1]))
    return Markup("As larger budgets enter the fit, α moves from {:.2f} to {:.2f}").format(first, last)


def alpha_training(rows: pd.DataFrame, run: str) -> Markup:
    return Markup("{} over {} checkpoints of {}").format(_believed(rows), rows["step"].nunique(), run)


def alpha_depth(last: pd.DataFrame, run: str) -> Markup:
    used = last.loc[_used(last), fit_columns(str(last["profile"].iloc[0]))["alpha"]]
    if used.empty:
        return Markup("{} at the last step of {}").format(_believed(last), run)
    quartiles = used.quantile([0.25, 0.5, 0.75])
    said = Markup("Median alpha {:.2f} (quartiles {:.2f} to {:.2f}) over {} of {} layers at the last step of {}")
    return said.format(quartiles[0.5], quartiles[0.25], quartiles[0.75], len(used), len(last), run)


def metrics(last: pd.DataFrame, run: str) -> Markup:
    norms = last["spectral_norm"].dropna()
    if norms.empty:
        return Markup("No spectrum at the last step of {}").format(run)
    return Markup("Largest eigenvalues from {:.3g} to {:.3g} at the last step of {}").format(norms.min(), norms.max(), run)


def _used(rows: pd.DataFrame) -> pd.Series:
    """Fits that no check speaks against, as in the medians of `spectra_summary`."""
    return (rows["status"] == "ok") & rows["trusted"].ne(False).fillna(True).astype(bool)


def _believed(rows: pd.DataFrame) -> Markup:
    """How many exponents can be believed, and what speaks against the others most often."""
    used = _used(rows)
    if used.all():
        return Markup("Every alpha passes its checks ({} fits)").format(len(rows))
    left = rows[~used]
    reasons = left["why"].where(left["status"] == "ok", left["status"].str.replace("_", " ")).fillna("").str.split("; ").explode()
    counts = reasons[reasons != ""].value_counts()
    most = f" ({counts.index[0]}: {counts.iloc[0]})" if len(counts) else ""
    share = "No alpha can" if not used.any() else f"{int(used.sum())} of {len(rows)} alphas can"
    return Markup("{} be trusted{}").format(share, most)


def question(runs: pd.DataFrame, task: str) -> str:
    """What was trained: `24 runs of gpt: 3 widths × 4 data fractions × 2 seeds`."""
    counts = [(runs[name].nunique(), words) for name, words in (("width", "width"), ("data_fraction", "data fraction"), ("seed", "seed"))]
    listed = " × ".join(f"{n} {words}{'s' if n != 1 else ''}" for n, words in counts)
    return f"{len(runs)} runs of {task}: {listed}"


def ranges(good: pd.DataFrame, sample: str) -> str:
    """The span of N, D and C."""
    if good.empty:
        return ""
    spans = [(N, "N", "parameters", count), (D, "D", f"{sample}s", count), (C, "C", "FLOP", flop)]
    return "; ".join(f"{letter} from {name(float(np.min(good[column])))} to {name(float(np.max(good[column])))} {words}"
                     for column, letter, words, name in spans)  # fmt: skip
