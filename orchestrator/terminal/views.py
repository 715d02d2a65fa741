"""What the verbs print: narrow tables and plain sentences. No decision is made here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import humanize
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from scalespec.orchestrator.states import MARKS
from scalespec.orchestrator.terminal.command import command
from scalespec.orchestrator.terminal.progress import console, duration, say

if TYPE_CHECKING:
    from scalespec.analysis.laws import Law
    from scalespec.orchestrator.doctor import Finding
    from scalespec.orchestrator.states import Outcome
    from scalespec.orchestrator.study.plan import Plan


def count(value: float) -> str:
    """`1.24B`, `512`, `3.2e18`: how the field writes counts."""
    if value < 1000:
        return f"{value:.4g}"
    if value >= 1e15:
        return f"{value:.2e}".replace("e+", "e")
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    raise AssertionError


def table(columns: Sequence[str], *, left: Sequence[str] = ()) -> Table:
    out = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        out.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return out


def display(shown: Table) -> None:
    """Prints a table at its own width: a terminal that is too narrow wraps its lines, and no number is cut off."""
    own = Measurement.get(console, console.options.update(max_width=10_000), shown).maximum
    Console(file=console.file, highlight=False, width=max(own, console.width)).print(shown)


def plan(planned: Plan, finished: int, free: int | None) -> None:
    """The runs, then the totals."""
    axes = sorted({name for run in planned.runs for name in run.axes})
    shown = table(
        ["run", *(a.rpartition(".")[2] for a in axes), "N", "steps", "D", "lr", "FLOP", "time", "disk", "unit"],
        left=["run"],
    )
    for run in planned.runs:
        extra = [f"{run.axes.get(axis)}" for axis in axes]
        shown.add_row(
            f"w{run.width} f={run.data_fraction} s{run.seed}", *extra, count(run.params_matmul), str(run.steps), count(run.samples),
            f"{run.lr:.3g}", count(run.flops_train), duration(run.seconds), humanize.naturalsize(run.disk_bytes, format="%.0f"), str(run.unit),
        )  # fmt: skip
    if planned.runs:
        display(shown)
    notes = Counter(
        note.split(" ")[-1] if note.startswith("only") else note for run in planned.runs for note in run.warnings
    )
    few = [run for run in planned.runs if any(note.startswith("only") for note in run.warnings)]
    if few:
        say(
            f"warning: {len(few)} runs have fewer than 200 steps (the shortest {min(r.steps for r in few)}); their losses say little"
        )
    if notes["warmup is more than half the run"]:
        say(
            f"warning: in {notes['warmup is more than half the run']} runs the warmup is more than half the run; lower schedule.warmup"
        )
    for note in sorted({note for run in planned.runs for note in run.warnings if "part of the key" in note}):
        say(f"note: {note}")
    done = f", {finished} finished before" if finished else ""
    if planned.further_runs:
        done += f", at most {planned.further_runs} more once their results are read"
    say(
        f"{len(planned.runs)} runs{done}; {len(planned.units)} units on {planned.lanes} lanes; C = {count(planned.flops_train)} FLOP"
    )
    say(f"FLOP: {planned.flops_convention}")
    say(f"time: about {duration(planned.seconds)} on this machine, of which starting worker groups takes {planned.start_up_share:.0%}"
        f" of the lanes' time and spectra {duration(planned.spectra_seconds)}")  # fmt: skip
    left = f" of {humanize.naturalsize(free)} free" if free is not None else ""
    say(f"disk: {humanize.naturalsize(planned.disk_bytes)}{left}")
    if free is not None and planned.disk_bytes > free:
        say("warning: that does not fit; lower train.checkpoints or choose another --storage")
    if planned.cost_usd is not None:
        say(f"cost: {planned.cost_usd:.2f} USD at resources.price_per_hour for each lane")


def status(found: Mapping[str, Any]) -> None:
    """The grid of width × fraction, one mark a run, and every run that is not done with its reason."""
    runs: Mapping[str, Mapping[str, Any]] = found["runs"]
    fractions = sorted({run["data_fraction"] for run in runs.values()}, key=lambda f: -_ratio(f))
    shown = table(["width", *fractions])
    for width in sorted({run["width"] for run in runs.values()}):
        cells = [
            "".join(MARKS[r["state"]] for r in runs.values() if (r["width"], r["data_fraction"]) == (width, f))
            for f in fractions
        ]
        shown.add_row(str(width), *cells)
    display(shown)
    tally = Counter(run["state"] for run in runs.values())
    say("  ".join(f"{MARKS[state]} {tally[state]} {state}" for state in MARKS if tally[state]))
    for key, run in runs.items():
        if run["error"]:
            say(f"  {key}: {run['state']}: {run['error']}")
    if found["other_runs"]:
        say(f"{found['other_runs']} other run folders there belong to earlier versions of the study")


def _ratio(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def outcome(result: Outcome, again: str, *, tracking: bool = True) -> None:
    """States, laws with intervals, and where everything is."""
    from scalespec.analysis.laws.registry import form_of_law

    tally = Counter(result.states.values())
    say(f"runs: {', '.join(f'{tally[state]} {state}' for state in MARKS if tally[state])}")
    for key, state in result.states.items():
        if state in ("failed", "missing"):
            say(f"  {key}: {state}")
    for problem in result.problems:
        say(f"problem: {problem}")
    for fitted in result.laws:
        if form_of_law(fitted).of_size_and_data:
            law(fitted, "")
    path = result.store.local_path or result.store.root
    files = result.store.files.names("report")
    if "index.html" in files:
        say(f"report: {path}/report/index.html")
    if tracking and result.tracked:
        say(f"MLflow: {command('ui', path)}")
    elif tracking:
        say(f"MLflow has not everything; repair with: {command('sync', path)}")
    if result.exit_code:
        say(f"some runs have no result; see {command('status', path)}, then: {again}")


def law(fitted: Law, said: str) -> None:
    """The parameters with intervals, the status, and the verdict."""
    from scalespec.analysis.laws import verdict

    status_words = ", ".join(sorted(fitted.status))
    say(
        f"law {fitted.id}: {fitted.form}, {fitted.n_used} of {fitted.n_points} points{'; ' + said if said else ''}; status: {status_words}"
    )
    shown = table(["", "estimate", f"{fitted.level:.0%} interval"], left=[""])
    for name, param in fitted.params.items():
        shown.add_row(
            name,
            f"{param.value:.5g}",
            "" if param.lo is None or param.hi is None else f"[{param.lo:.4g}, {param.hi:.4g}]",
        )
    if fitted.params:
        display(shown)
    for line in best_sizes(fitted):
        say(line)
    say(verdict(fitted))


def best_sizes(fitted: Law) -> list[str]:
    """What a law of L(N, D) expects to be best for the largest budget of the table, and for ten times that."""
    from scalespec.analysis.laws import optimum
    from scalespec.analysis.laws.form import Cost
    from scalespec.analysis.laws.registry import form_of_law
    from scalespec.analysis.plots.axes import flop

    if not form_of_law(fitted).of_size_and_data or not fitted.params or fitted.evidence is None:
        return []
    cost, columns = Cost.of(fitted), fitted.evidence.columns
    spent = cost.k * columns["n"] ** cost.s * columns["d"] ** cost.t
    lines = []
    for budget, where in ((float(spent.max()), "the largest budget"), (10 * float(spent.max()), "ten times that")):
        best = optimum(fitted, budget)
        said = [
            f"{letter} = {name(p.value)}" + ("" if p.lo is None or p.hi is None else f" [{name(p.lo)}, {name(p.hi)}]")
            for letter, name, p in (
                ("N", count, best["n"]),
                ("D", count, best["d"]),
                ("loss", "{:.4g}".format, best["loss"]),
            )
        ]
        lines.append(f"best at {flop(budget)} FLOP, {where}: {', '.join(said)}")
    return lines


def spectra(rows: Sequence[Mapping[str, Any]]) -> None:
    """The plain columns, one row a layer; why a layer has no fit."""
    names = ("alpha", "D", "xmin", "num_pl_spikes", "alpha_weighted", "log_norm", "spectral_norm", "stable_rank")
    heads = ("layer", "N", "M", "alpha", "D", "xmin", "tail", "alpha^", "log norm", "λ max", "st. rank", "trusted")
    steps = {row["step"] for row in rows}
    shown = table(["step", *heads] if len(steps) > 1 else heads, left=["layer", "trusted"])
    for row in rows:
        numbers = [_cell(row.get(name)) for name in names] if row["status"] in ("ok", "too_small") else ["", *[""] * 7]
        trusted = {True: "yes", False: row.get("why") or "no", None: row.get("why") or row["status"]}[
            row.get("trusted")
        ]
        cells = [
            row["layer"],
            str(row["rows"]),
            str(row["cols"]),
            *numbers,
            trusted if row["status"] == "ok" else row["status"],
        ]
        shown.add_row(*([str(row["step"]), *cells] if len(steps) > 1 else cells))
    display(shown)
    say(believed(rows))


def believed(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many exponents can be trusted, and what speaks against the others, most often first."""
    trusted = sum(row.get("trusted") is True for row in rows)
    against = Counter(
        reason
        for row in rows
        if row.get("trusted") is not True
        for reason in (row.get("why") or row["status"].replace("_", " ")).split("; ")
    )
    listed = ", ".join(f"{reason} ({n})" for reason, n in against.most_common(4))
    said = f"{trusted} of {len(rows)} exponents can be trusted"
    return f"{said}; against the others: {listed}" if listed else said


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def findings(found: Sequence[Finding]) -> None:
    """One line a check; a failure with its remedy."""
    for finding in found:
        say(f"{'✔' if finding.ok else '✘'} {finding.name}: {finding.detail}")
        if not finding.ok:
            say(f"    remedy: {finding.remedy}")
