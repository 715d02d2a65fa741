"""What a study found, in sentences of plain text: the headings of its report. Exponents come with intervals, shares with counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scalespec.analysis.laws import Backtest, FitStatus, Law, Param
from scalespec.analysis.laws.effective_params import StudyReading
from scalespec.analysis.laws.registry import form_of_law
from scalespec.analysis.laws.study import C, D, N, extra_axes
from scalespec.analysis.plots.axes import count, flop
from scalespec.analysis.selection import Corrected
from scalespec.analysis.spectral import fit_columns

DOUBTS = {
    FitStatus.NOT_CONVERGED: "the fit did not converge",
    FitStatus.DID_NOT_MOVE: "the optimizer never left its start",
    FitStatus.FLAT_BASIN: "other exponents fit almost as well",
    FitStatus.TOO_NARROW: "the range is too narrow for an exponent",
    FitStatus.AT_BOUND: "a parameter ended on its bound",
}


@dataclass(frozen=True)
class Sample:
    """What the task's samples are called, and so its loss."""

    name: str = "sample"
    """token | image; `sample` where nothing is known of the task."""

    @property
    def loss(self) -> str:
        return "nats" if self.name == "sample" else f"nats per {self.name}"


def range_of(param: Param, digits: int = 2) -> str:
    """`0.54 [0.21, 0.88]`; the estimate alone where there is no interval."""
    value = f"{param.value:.{digits}f}"
    return value if param.lo is None or param.hi is None else f"{value} [{param.lo:.{digits}f}, {param.hi:.{digits}f}]"


def headline(states: Mapping[str, int], law: Law | None) -> str:
    """The study in one sentence; `states` counts the runs in each state."""
    if not states.get("done"):
        return "No run finished, so there is nothing to fit"
    if law is None:
        return "The runs do not determine a scaling law"
    form = form_of_law(law)
    falls = (
        f"{form.symbol(form.slopes[variable])} = {range_of(law.params[form.slopes[variable]])} in {word}"
        for variable, word in (("n", "size"), ("d", "data"))
        if variable in form.slopes
    )
    said = f"The loss falls with {' and '.join(falls)}"
    doubts = [words for status, words in DOUBTS.items() if status in law.status]
    return f"{said}, but {doubts[0]}" if doubts else said


def compared(named: Sequence[tuple[str, Law | None]]) -> str:
    """How the exponent of the best size changes between combinations of the further axes."""
    known = [(label, law.params["a"]) for label, law in named if law is not None]
    if not known:
        return "The runs do not determine a scaling law"
    if len(known) == 1:
        return (
            f"The best model size grows as C^{range_of(known[0][1])} at {known[0][0]}; the other settings gave no law"
        )
    clear = any(_above(p, q) for _, p in known for _, q in known)
    listed = " and ".join(f"C^{range_of(p)} at {label}" for label, p in known)
    if len(known) == 2:
        return f"The best model size grows as {listed}: {'a' if clear else 'no'} difference beyond the intervals"
    low, high = min(p.value for _, p in known), max(p.value for _, p in known)
    beyond = "further apart" if clear else "no further apart"
    return f"The exponent of the best model size runs from {low:.2f} to {high:.2f} over {len(known)} settings, {beyond} than its intervals"


def _above(p: Param, q: Param) -> bool:
    return p.lo is not None and q.hi is not None and p.lo > q.hi


def question(runs: pd.DataFrame, task: str, source: str) -> str:
    """What was trained: `24 runs of gpt on stdlib: 3 widths × 4 data fractions × 2 seeds`."""
    if runs.empty:
        return f"{task} on {source}, not run yet"
    names = {"width": "width{s}", "data_fraction": "data fraction{s}", "seed": "seed{s}"}
    names |= {axis: f"value{{s}} of {axis}" for axis in extra_axes(runs)}
    counts = ((runs[name].nunique(dropna=False), words) for name, words in names.items())
    listed = " × ".join(f"{n} {words.format(s='' if n == 1 else 's')}" for n, words in counts)
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''} of {task} on {source}: {listed}"


def ranges(good: pd.DataFrame, sample: str) -> str:
    """The span of N, D and C over the finished runs; empty without one."""
    if good.empty:
        return ""
    spans = ((N, "N", "parameters", count), (D, "D", f"{sample}s", count), (C, "C", "FLOP", flop))
    return "; ".join(f"{letter} from {name(float(good[column].min()))} to {name(float(good[column].max()))} {words}"
                     for column, letter, words, name in spans)  # fmt: skip


def status(states: Mapping[str, int]) -> str:
    """How the grid came out."""
    total, bad = sum(states.values()), {state: n for state, n in states.items() if state != "done" and n}
    if not total:
        return "No run has a result yet"
    if bad:
        return f"{states.get('done', 0)} of {total} runs finished, " + ", ".join(
            f"{n} {state}" for state, n in bad.items()
        )
    return f"All {total} runs finished" if total > 1 else "The one run finished"


def curves(good: pd.DataFrame, sample: Sample) -> str:
    if good.empty:
        return "No run finished; the curves show how far each came"
    losses, spread = good["val_loss"], float(good[C].max() / good[C].min())
    over = f" over a factor of {count(spread)} in compute" if spread > 1.05 else ""
    if len(good) == 1:
        return f"The final loss is {losses.iloc[0]:.3g} {sample.loss}"
    return f"Final losses run from {losses.max():.3g} to {losses.min():.3g} {sample.loss}{over}"


def surface(law: Law | None) -> str:
    if law is None:
        return "Final losses against data and size; no law was fitted"
    noise = law.diagnostics.get("seed_noise_sd")
    seeds = f"; seeds differ by {100 * noise:.2g} %" if noise else ""
    return f"The law misses the losses by {100 * law.diagnostics['mape']:.2g} % on average{seeds}"


def frontier(size: Law | None, loss: Law | None, whole: Law | None) -> str:
    """From the frontier that the runs show, or else from what the law for L(N, D) implies."""
    if size is not None:
        falls = (
            f", and the best loss falls towards its floor as C^−{range_of(loss.params['gamma'])}"
            if loss is not None
            else ""
        )
        return f"The best model size grows as C^{range_of(size.params['a'])}{falls}"
    if whole is not None:
        exponent = whole.params.get("n_opt_exponent", whole.params["a"])
        return f"By the law for L(N, D) the best model size grows as C^{range_of(exponent)}; the runs show no frontier of their own"
    return "The runs show no compute-efficient frontier"


def budgets(laws: Sequence[Law]) -> tuple[int, int]:
    """How many compute budgets have their best size between two others, and how many were looked at."""
    found = next((law.diagnostics for law in laws if law.form == "n_opt"), {})
    bracketed = len(found.get("points", {}).get("c", ()))
    return bracketed, bracketed + sum(len(missed["c"]) for missed in found.get("not_bracketed", {}).values())


def isoflop(laws: Sequence[Law]) -> str:
    bracketed, total = budgets(laws)
    return f"{bracketed or 'None'} of {total} compute budgets {'has its' if bracketed == 1 else 'have their'} best size between two others"


def accuracy(good: pd.DataFrame) -> str:
    share = 100 * good["val_accuracy"].dropna()
    return f"Validation accuracy runs from {share.min():.1f} to {share.max():.1f} %"


def backtest(tests: Sequence[Backtest]) -> str:
    """Of the holdout that asks for the longest step in compute: the error, its sign, and whether the law earns its keep."""
    if not tests:
        return "No runs could be held out to test the law"
    scores: Mapping[str, Any] = max(tests, key=lambda test: test.ratio).scores()
    name, best = min(scores["baselines"].items(), key=lambda item: item[1])
    bias = f"{100 * scores['bias']:+.2g}".replace("-", "−")
    beats = "better than" if scores["mape"] < best else "no better than"
    return (
        f"Held out, {scores['name']} is missed by {100 * scores['mape']:.2g} % (bias {bias} %),"
        f" {beats} the best baseline ({name}, {100 * best:.2g} %)"
    )


def drift(rolling: Sequence[Backtest]) -> str:
    if len(rolling) < 2:
        return "Too few budgets to watch the coefficients move"
    first, last = (range_of(test.law.params["a"]) for test in (rolling[0], rolling[-1]))
    return f"As larger budgets enter the fit, the exponent a moves from {first} to {last}"


def laws(fitted: Sequence[Law]) -> str:
    """How many of the laws are to be believed as they stand."""
    if not fitted:
        return "No law was fitted"
    clean = sum(law.clean for law in fitted)
    return f"{clean or 'None'} of {len(fitted)} laws {'is' if clean == 1 else 'are'} without reserve"


def conventions(frame: pd.DataFrame) -> str:
    """`frame` as from `analysis.laws.sensitivity`."""
    low, high = frame["n_opt_exponent"].min(), frame["n_opt_exponent"].max()
    return f"By the choice of N and C alone, the exponent of the best size runs from {low:.2f} to {high:.2f}"


def corrected(found: Corrected, sample: Sample) -> str:
    """What choosing on all of the validation set hides, by resampling its examples."""
    return (
        f"Chosen on all examples and all seeds, the best has a loss of {found.apparent:.4g} {sample.loss}; on examples that had no"
        f" part in choosing it, {found.corrected:.4g} ({found.lo:.4g} to {found.hi:.4g})."
    )


def effective_params(reading: StudyReading) -> str:
    """What the loss says of the size, and which of its two readings to use."""
    if reading.refused:
        return "Effective parameters by constants refitted from these runs"
    if reading.inflation == reading.inflation:
        return f"Effective parameters by Kaplan's constants: read from single batches they come out {100 * reading.inflation:+.2g} %"
    return "Effective parameters by Kaplan's constants"


def spectra(rows: pd.DataFrame) -> str:
    """Of the whole study."""
    checkpoints = len(rows[["run_key", "step"]].drop_duplicates())
    said = _believed(rows)
    return f"Spectra of {checkpoints:,} checkpoints of {rows['run_key'].nunique():,} runs: {said[0].lower()}{said[1:]}"


def alpha_training(rows: pd.DataFrame, run: str) -> str:
    return f"{_believed(rows)} over {rows['step'].nunique()} checkpoints of {run}"


def alpha_depth(last: pd.DataFrame, run: str) -> str:
    used = last.loc[_used(last), fit_columns(str(last["profile"].iloc[0]))["alpha"]]
    if used.empty:
        return f"{_believed(last)} at the last step of {run}"
    low, middle, high = (float(used.quantile(q)) for q in (0.25, 0.5, 0.75))
    return f"Median alpha {middle:.2f} (quartiles {low:.2f} to {high:.2f}) over {len(used)} of {len(last)} layers at the last step of {run}"


def metrics(last: pd.DataFrame, run: str) -> str:
    norms = last["spectral_norm"].dropna()
    if norms.empty:
        return f"No spectrum at the last step of {run}"
    return f"Largest eigenvalues from {norms.min():.3g} to {norms.max():.3g} at the last step of {run}"


def _used(rows: pd.DataFrame) -> pd.Series[bool]:
    """Fits that no check speaks against, as in the medians of `spectra_summary`."""
    return (rows["status"] == "ok") & ~rows["trusted"].eq(False).fillna(False).astype(bool)


def _believed(rows: pd.DataFrame) -> str:
    """How many exponents can be believed, and what speaks against the others most often."""
    used = _used(rows)
    if used.all():
        return f"Every alpha passes its checks ({len(rows)} fits)"
    left = rows[~used]
    reasons = (
        left["why"]
        .where(left["status"] == "ok", left["status"].str.replace("_", " "))
        .fillna("")
        .str.split("; ")
        .explode()
    )
    counts = reasons[reasons != ""].value_counts()
    most = f" ({counts.index[0]}: {counts.iloc[0]} of {len(rows)})" if len(counts) else ""
    return f"{'No alpha' if not used.any() else f'{int(used.sum())} of {len(rows)} alphas'} can be trusted{most}"
