"""The report: one offline HTML page with its figures, its numbers, what they mean and how far to trust them."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd
import pyarrow as pa

from scalespec.analysis import tables
from scalespec.analysis.laws import Law, sensitivity, verdict
from scalespec.analysis.laws.effective_params import StudyReading, read_study
from scalespec.analysis.laws.registry import form_of_law
from scalespec.analysis.laws.study import results_only, usable
from scalespec.analysis.plots.study import fraction
from scalespec.analysis.spectral.over_time import loss_correlation
from scalespec.orchestrator.report import headings
from scalespec.orchestrator.report.figures import (
    Picture,
    Setting,
    choice_picture,
    inline,
    largest_run,
    law_pictures,
    settings,
    spectra_pictures,
)
from scalespec.orchestrator.report.headings import Sample
from scalespec.orchestrator.report.selection import Losses, choose, correct, read_examples
from scalespec.orchestrator.report.tables import (
    Download,
    conventions,
    correlation_table,
    download,
    effective_table,
    exponents,
    laws_table,
    layers_table,
    matrices,
    missing_runs,
    runs_table,
    sensitivity_table,
    unfinished,
)
from scalespec.orchestrator.states import MARKS
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study.file import Study, to_yaml
from scalespec.orchestrator.terminal.progress import duration
from scalespec.trainables.keys import keys_of

FOLDER = "report"
LIMIT = 1_500_000
"""Bytes of inline figures, so that the page with its tables and downloads stays under 2 MB; the largest go first."""
MOST_PARTS = 4
"""Combinations of the further axes that get figures; the others are in the tables."""

SUMMARIES = (
    "alpha_median",
    "alpha_hill_median",
    "mean_alpha_weighted",
    "mean_log_norm",
    "mean_log_spectral_norm",
    "mean_stable_rank",
)
DRAWS = 200
"""Resamples for what stands beside the laws: other conventions, and the correlation of spectra with the loss."""


def write(study: Study, store: StudyStore, made: Mapping[str, pa.Table], laws: Sequence[Law], unit: str = "") -> None:
    """Writes report/index.html, and each figure as report/figures/NAME.svg with its data as NAME.csv.

    `made` holds the tables `runs`, `curves`, `spectra` and `spectra_summary` of `analysis.tables`. The page refers to nothing
    outside itself. A figure or law that cannot be had is a line that says why. `unit`: what D counts, images or tokens.
    """
    kept = {
        **made,
        "spectra": made["spectra"].drop_columns(["eigenvalues"]),
    }  # the bulk of it, and nothing here draws them
    frames = {name: tables.to_pandas(kept[name]) for name in ("runs", "curves", "spectra", "spectra_summary", "asks")}
    examples = read_examples(store, choose(results_only(frames["runs"])[0]))
    page, pictures = build(study, frames, laws, store.read_json("plan.json"), examples, unit)
    store.files.delete(f"{FOLDER}/figures")
    for shown in pictures:
        if shown.svg:
            store.files.write(f"{FOLDER}/figures/{shown.name}.svg", shown.svg.encode())
            store.files.write(f"{FOLDER}/figures/{shown.name}.csv", shown.data.encode())
    store.files.write(f"{FOLDER}/index.html", page.encode())


def build(
    study: Study,
    frames: Mapping[str, pd.DataFrame],
    laws: Sequence[Law],
    plan: Mapping[str, Any] | None = None,
    examples: Mapping[str, Losses] | None = None,
    unit: str = "",
) -> tuple[str, list[Picture]]:
    """The page and its figures; nothing is read or written."""
    sample = Sample(unit.removesuffix("s")) if unit else Sample()
    missing = missing_runs(frames["runs"], plan, set(frames["asks"]["run_key"]))
    whole, probes = results_only(pd.concat([frames["runs"], missing]) if len(missing) else frames["runs"])
    runs = whole[whole["status"] != "missing"]
    every = settings(runs, laws)
    lead = every[0]
    states = {state: n for state in MARKS if (n := int((whole["status"] == state).sum()))}
    good = usable(runs, "val_loss")[0]
    sections = [(setting, law_pictures(setting, frames["curves"], sample)) for setting in every[:MOST_PARTS]]
    largest = largest_run(runs, frames["spectra"])
    spectral = spectra_pictures(largest)
    chosen = choose(runs)
    choosing = [choice_picture(chosen.selection, sample)] if chosen is not None else []
    corrected = correct(chosen, examples or {})
    effective = _effective(study, runs, frames["curves"])
    pictures = [shown for _, made in sections for shown in made] + choosing + spectral
    kept = _fitting(pictures)
    counted = sensitivity(lead.runs, resamples=DRAWS // 2) if len(lead.good) else pd.DataFrame()
    listed, more = unfinished(whole)
    context = {
        "study": study,
        "headline": headings.headline(states, lead.law("chinchilla"))
        if len(every) == 1
        else headings.compared([(setting.label, setting.law("chinchilla")) for setting in every]),
        "question": headings.question(whole, study.task["name"], study.data.source),
        "ranges": headings.ranges(good, sample.name),
        "facts": facts(study, runs, whole, probes),
        "cards": _cards(lead) if len(every) == 1 else [],
        "exponents": exponents(every) if len(every) > 1 else "",
        "verdicts": [(setting.label, _verdict(setting)) for setting in every],
        "status": headings.status(states),
        "marks": [(MARKS[state], n, state) for state, n in states.items()],
        "matrices": matrices(whole),
        "sections": [(setting.label, made) for setting, made in sections],
        "without_figures": [setting.label for setting in every[MOST_PARTS:]],
        "choosing": choosing,
        "corrected": headings.corrected(corrected, sample) if corrected else "",
        "spectral": spectral,
        "spectral_heading": headings.spectra(frames["spectra"]) if spectral else "",
        "layers": layers_table(largest),
        "correlation": correlation_table(_correlation(runs, frames)),
        "inline": {shown.name: inline(shown) for shown in kept},
        "runs_table": runs_table(runs) if len(runs) else "",
        "laws_table": laws_table(laws),
        "laws_heading": headings.laws(laws),
        "effective": effective_table(effective),
        "effective_heading": headings.effective_params(effective) if effective else "",
        "effective_note": _effective_note(effective),
        "sensitivity": sensitivity_table(counted),
        "sensitivity_heading": headings.conventions(counted) if len(counted) else "",
        "unfinished": listed,
        "more_unfinished": more,
        "left_out": _left_out(laws),
        "conventions": conventions(),
        "flops_convention": "; ".join(sorted(set(runs["flops_convention"]))),
        "sample": sample,
        "downloads": _downloads(study, runs, laws),
        "yaml": to_yaml(study),
    }
    return _template().render(context), pictures


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("scalespec.orchestrator.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["raised"] = raised
    return environment.get_template("report.html")


def raised(text: str) -> str:
    """Plain text as HTML, the exponents of `C^0.54` and `N^−α` raised."""
    return re.sub(r"\^(−?(?:\d+(?:\.\d+)?|[αβγa]\b))", r"<sup>\1</sup>", html.escape(text))


def facts(study: Study, runs: pd.DataFrame, whole: pd.DataFrame, probes: int = 0) -> list[tuple[str, str]]:
    """What was asked and where it ran, as (name, value)."""
    grid = [
        (name.rpartition(".")[2], _values(whole, name))
        for name in dict.fromkeys(["width", "data_fraction", "seed", *study.axes])
    ]
    options = ", ".join(f"{key} = {value}" for key, value in study.task.items() if key != "name")
    data = ", ".join(
        f"{key} = {value}"
        for key in (found.name for found in keys_of(type(study.data)).values() if found.axis)
        if (value := getattr(study.data, key)) is not None
    )
    optim = study.optim
    out = [
        ("task", study.task["name"] + (f" ({options})" if options else "")),
        ("data", data),
        *((name.replace("_", " "), listed) for name, listed in grid if listed),
        ("optimizer", f"{optim.name}, lr {optim.lr:g} at width {optim.reference.width} and batch {optim.reference.batch_size}"
                      f" (rules {optim.width_rule}, {optim.batch_rule}), batch {optim.batch_size}"),
        ("schedule", f"{study.schedule.name}, warmup {study.schedule.warmup:,} samples, {study.train.epochs} epoch{'s' if study.train.epochs > 1 else ''}"),
        ("spectra", f"{study.spectra.profile}, every {study.spectra.every}" if study.spectra.every != "never" else "not asked for"),
    ]  # fmt: skip
    if probes:
        out.append(("probes", f"{probes} runs that stages read, left out of laws, frontier and choices"))
    if len(runs):
        began, cost = runs["started_at"].dropna(), runs["cost_usd"].sum(min_count=1)
        out += [
            ("trained on", "; ".join(f"{device} ({n} runs)" for device, n in Counter(runs["device"]).items())),
            ("precision", ", ".join(sorted(set(runs["precision"])))),
            ("began", f"{began.min():%d %B %Y, %H:%M} UTC"),
            (
                "time",
                f"{duration(float(runs['duration_s'].sum()))} of training"
                + (f", {cost:.2f} USD" if cost == cost else ""),
            ),
            ("code", ", ".join(sorted(set(map(str, runs["code_version"].dropna())))) or "version not recorded"),
        ]
    return [*out, ("again", "scalespec run study.yaml"), ("redraw", f"scalespec analyze {study.name}")]


def _values(runs: pd.DataFrame, axis: str) -> str:
    column = {"optim.lr": "lr_base"}.get(axis, axis.rpartition(".")[2])
    if column not in runs or runs.empty:
        return ""
    values = sorted(runs[column].dropna().unique(), reverse=column == "data_fraction")
    listed = [fraction(v) if column == "data_fraction" else f"{v}" for v in values]
    return ", ".join(listed) if len(listed) <= 12 else ", ".join([*listed[:5], "…", *listed[-2:]]) + f" ({len(listed)})"


def _cards(setting: Setting) -> list[tuple[str, str, str, str]]:
    """(symbol, estimate, interval, meaning) of what people look for first."""
    law = setting.law("chinchilla")
    if law is None:
        return []
    out, form = [], form_of_law(law)
    for name in form.cards:
        p, said = law.params[name], form.parameters[name]
        interval = "no interval" if p.lo is None or p.hi is None else f"{p.lo:#.3g} to {p.hi:#.3g}"
        out.append((said.symbol, f"{p.value:#.3g}", interval, said.meaning))
    return out


def _verdict(setting: Setting) -> list[tuple[str, bool, str, str]]:
    """(law, clean, statuses, paragraph) of the laws that answer the study's question."""
    shown = [(form_of_law(law), law) for law in setting.laws]
    return [
        (form.title, law.clean, _statuses(law), verdict(law))
        for form, law in shown
        if form.of_size_and_data or (form.along_compute and form.loss is None)
    ]


def _statuses(law: Law) -> str:
    return ", ".join(law.to_json()["status"]).replace("_", " ")


def _left_out(laws: Sequence[Law]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Law → reasons with the number of runs it left out for each."""
    return [(law.id, Counter(e.reason for e in law.excluded).most_common()) for law in laws if law.excluded]


def _effective(study: Study, runs: pd.DataFrame, curves: pd.DataFrame) -> StudyReading | None:
    """The effective parameters; None where too few runs have finished."""
    text = study.data.tokenizer is not None or study.task["name"] == "gpt"
    tokenizer = study.data.tokenizer or ("bytes" if text else None)
    try:
        return read_study(runs, curves, kind="text" if text else study.task["name"], tokenizer=tokenizer)
    except ValueError:
        return None


def _effective_note(reading: StudyReading | None) -> str:
    if reading is None:
        return ""
    constants = reading.constants
    form = f"L = ({constants.n_c:.3g}/N)^{constants.exponent:.3g}"
    if reading.refused:
        return f"Not by Kaplan's: {reading.refused.removeprefix('effective parameters: ').partition('; ')[0]}. Here {form}, {constants.source}, by the averaged training loss of the runs with most data."
    return (
        f"{form} ({constants.source}). 1 % of loss is {100 * (1.01 ** (1 / constants.exponent) - 1):.0f} % of N, and the transform is convex:"
        " smooth first, then transform."
    )


def _correlation(runs: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Change of each spectral summary against change of the validation loss, checkpoint to checkpoint."""
    losses = (
        frames["curves"]
        .query("metric == 'val_loss'")[["run_key", "step", "value"]]
        .rename(columns={"value": "val_loss"})
    )
    table = (
        frames["spectra_summary"]
        .merge(losses, on=["run_key", "step"])
        .merge(runs[["run_key", "family_key"]], on="run_key")
    )
    names = [name for name in SUMMARIES if table[name].notna().any()]
    found = loss_correlation(table, names, resamples=DRAWS) if names else pd.DataFrame({"rho": []})
    return found[found["rho"].notna()]


def _fitting(pictures: Sequence[Picture]) -> list[Picture]:
    """The figures that the page has room for; of too many the largest are left to their files."""
    kept = [shown for shown in pictures if shown.svg]
    while sum(len(shown.svg) for shown in kept) > LIMIT:
        kept.remove(max(kept, key=lambda shown: len(shown.svg)))
    return kept


def _downloads(study: Study, runs: pd.DataFrame, laws: Sequence[Law]) -> list[Download]:
    files = {
        "runs.csv": runs.to_csv(index=False).encode(),
        "laws.json": json.dumps([law.to_json() for law in laws], indent=1, allow_nan=False).encode(),
        "study.yaml": to_yaml(study).encode(),
    }
    made = (download(name, data) for name, data in files.items())
    return [one for one in made if one is not None]
