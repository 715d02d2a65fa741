"""Which figures a report shows: each with the finding that stands over it and the data behind it, or why there is none."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scalespec.analysis.laws import Backtest, Law, Table, backtests, rolling_origin
from scalespec.analysis.laws.study import C, D, N, extra_axes, usable
from scalespec.analysis.plots import laws as law_plots
from scalespec.analysis.plots import spectra as spectra_plots
from scalespec.analysis.plots import study as study_plots
from scalespec.analysis.plots.selection import selection_figure
from scalespec.analysis.plots.style import to_svg
from scalespec.analysis.selection import Selection
from scalespec.orchestrator.report import headings
from scalespec.orchestrator.report.headings import Sample

log = logging.getLogger("scalespec.report")

LARGE = 300_000
"""Bytes of SVG from which lines and markers of a figure become pixels where that is smaller; axes and text stay vectors."""

RESAMPLES = 200
"""Bootstrap draws for each fit of a backtest: these intervals are looked at, those of the laws are quoted."""

Drawn = tuple[Figure, pd.DataFrame]


@dataclass(frozen=True)
class Picture:
    """One figure of the report, or the reason why it could not be made."""

    name: str
    """File name without its ending."""
    heading: str
    """What it shows, as a sentence."""
    alt: str
    """What is drawn, for someone who cannot see it."""
    svg: str = ""
    data: str = ""
    """CSV of what is drawn."""
    missing: str = ""
    """Why there is no figure; empty where there is one."""


@dataclass(frozen=True)
class Setting:
    """The runs that differ only in width, data fraction and seed, with their laws."""

    label: str
    """`dropout=0.2`; empty where the study has no further axis."""
    runs: pd.DataFrame
    laws: Sequence[Law]

    @property
    def good(self) -> pd.DataFrame:
        """The runs that may enter a law."""
        return usable(self.runs, "val_loss")[0]

    def law(self, name: str) -> Law | None:
        """The law of that name, where it has parameters."""
        return next((law for law in self.laws if law.id.partition("/")[0] == name and law.params), None)


def settings(runs: pd.DataFrame, laws: Sequence[Law]) -> list[Setting]:
    """One setting for each combination of the further axes, as `analysis.laws.study_laws` names them."""
    axes = extra_axes(runs)
    if not axes:
        return [Setting("", runs, laws)]
    out = []
    for values, rows in runs.groupby(axes, dropna=False, sort=True):
        label = ",".join(f"{axis}={value}" for axis, value in zip(axes, values, strict=True))
        out.append(Setting(label, rows, [law for law in laws if law.id.partition("/")[2] == label]))
    return out


def law_pictures(setting: Setting, curves: pd.DataFrame, sample: Sample) -> list[Picture]:
    """Curves, surface, frontier, IsoFLOP profiles, accuracy, backtest and drift of one setting."""
    good, tests, rolling = setting.good, *_holdouts(setting.good)
    size, loss, whole = setting.law("n_opt"), setting.law("frontier"), setting.law("chinchilla")

    def make(name: str, heading: Callable[[], str], alt: str, draw: Callable[[], Drawn]) -> Picture:
        return picture(f"{name}-{setting.label}" if setting.label else name, heading, alt, draw)

    made = [
        make("curves", lambda: headings.curves(good, sample), "Validation loss of every run against training compute, coloured by model size.",
             lambda: _curves(setting, curves, sample)),
        make("surface", lambda: headings.surface(whole), "Final loss against data and against model size, the fitted law, and its residuals.",
             lambda: _surface(setting, sample)),
        make("frontier", lambda: headings.frontier(size, loss, whole), "Lowest loss and best model size against compute, with power laws.",
             lambda: _frontier(setting, sample)),
    ]  # fmt: skip
    if headings.budgets(setting.laws)[1]:
        made.append(make("isoflop", lambda: headings.isoflop(setting.laws), "Loss against model size, one curve a compute budget, minima as stars.",
                         lambda: (law_plots.isoflop_figure(setting.runs, setting.laws, labels=_labels(sample)), _points(setting.runs))))  # fmt: skip
    if sample.name != "token" and good["val_accuracy"].notna().any():
        made.append(make("accuracy", lambda: headings.accuracy(good), "Validation accuracy of the finished runs against training compute.",
                         lambda: _accuracy(setting, sample)))  # fmt: skip
    return [
        *made,
        make("backtest", lambda: headings.backtest(tests), "Losses of held-out runs as the law predicts them, beside simple baselines.",
             lambda: _backtest(tests, sample)),
        make("drift", lambda: headings.drift(rolling), "Each coefficient of the law as larger budgets enter the fit.",
             lambda: _drift(rolling, whole)),
    ]  # fmt: skip


def choice_picture(found: Selection, sample: Sample) -> Picture:
    """What of a lead is left on data and seeds that had no setting in the choice."""
    return picture(
        "selection", found.sentence, "Loss of every configuration where it was chosen and where it was not; the expected best of n.",
        lambda: (selection_figure(found, loss_label=_labels(sample).loss), found.scores.reset_index()),
    )  # fmt: skip


def largest_run(runs: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """The spectra of the run with most compute among those that have any."""
    known = runs[runs["run_key"].isin(spectra["run_key"])]
    chosen = known.sort_values([C, "run_key"], ascending=[False, True])["run_key"].head(1)
    return spectra[spectra["run_key"].isin(chosen)]


def spectra_pictures(rows: pd.DataFrame) -> list[Picture]:
    """Alpha over training and against depth, of the spectra of one run."""
    if rows.empty:
        return []
    last = rows[rows["step"] == rows["step"].max()]
    name = str(rows["run_key"].iloc[0])
    return [
        picture("alpha-training", lambda: headings.alpha_training(rows, name), "Alpha of every layer against training step; untrusted points hollow.",
                lambda: (spectra_plots.training_figure(rows), _spectra_data(rows))),
        picture("alpha-depth", lambda: headings.alpha_depth(last, name), "Alpha of every layer of the last checkpoint, input to output.",
                lambda: (spectra_plots.depth_figure(last), _spectra_data(last))),
        picture("metrics", lambda: headings.metrics(last, name), "Spectral norm, weighted alpha, log norm and alpha of every layer.",
                lambda: (spectra_plots.metrics_figure(last), _spectra_data(last))),
    ]  # fmt: skip


def picture(name: str, heading: Callable[[], str], alt: str, draw: Callable[[], Drawn]) -> Picture:
    """The drawn figure under its heading. One that cannot be drawn (ValueError) says why; a fault of ours is named and logged.

    Neither takes the report with it: what a study cost is not lost for want of a picture.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", name)
    said = alt.rstrip(".")
    try:
        said = heading()
        fig, data = draw()
        return Picture(name, said, alt, svg_of(fig), data.to_csv(index=False))
    except ValueError as error:
        return Picture(name, said, alt, missing=str(error))
    except Exception as error:  # a figure has many settings, and the rest of the page stands without any of them
        log.warning("figure %s: %s: %s", name, type(error).__name__, error)
        log.debug("figure %s", name, exc_info=True)
        return Picture(
            name, said, alt, missing=f"a fault of scalespec while drawing it ({type(error).__name__}: {error})"
        )


def svg_of(fig: Figure) -> str:
    """The figure as SVG; data that would be many thousand elements are pixels in it."""
    svg = to_svg(fig)
    if len(svg) <= LARGE:
        return svg
    for axes in fig.axes:
        for artist in (*axes.lines, *axes.collections):
            artist.set_rasterized(True)
    return min(svg, to_svg(fig), key=len)


def inline(shown: Picture) -> str:
    """The SVG for a page that holds several: ids of its own, a name for screen readers, no address of anything outside."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", shown.svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{shown.name}-', svg)
    svg = (
        svg.replace("url(#", f"url(#{shown.name}-")
        .replace("xlink:href=", "href=")
        .replace('href="#', f'href="#{shown.name}-')
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(shown.alt)}"', 1)


def _curves(setting: Setting, curves: pd.DataFrame, sample: Sample) -> Drawn:
    points = study_plots.curves_of(setting.runs, curves)
    labels = _labels(sample)
    return study_plots.curves_figure(setting.runs, curves, setting.laws, labels=labels, points=points), points


def _labels(sample: Sample) -> law_plots.Labels:
    return law_plots.Labels(d=f"D, {sample.name}s processed", loss=f"validation loss ({sample.loss})")


def _surface(setting: Setting, sample: Sample) -> Drawn:
    _need(setting.good)
    return law_plots.surface_figure(setting.runs, setting.laws, labels=_labels(sample)), _points(setting.runs)


def _frontier(setting: Setting, sample: Sample) -> Drawn:
    _need(setting.good)
    found = next((law for law in setting.laws if law.form == "frontier"), None)
    points = found.diagnostics.get("points", {}) if found else {}
    if not points.get("c"):
        raise ValueError(
            "at no compute budget does the best size lie between two others; train more sizes or fractions"
        )
    return law_plots.frontier_figure(setting.runs, setting.laws, labels=_labels(sample)), pd.DataFrame(points)


def _accuracy(setting: Setting, sample: Sample) -> Drawn:
    return study_plots.accuracy_figure(setting.runs, setting.laws, labels=_labels(sample)), _points(
        setting.runs, "val_accuracy"
    )


def _backtest(tests: Sequence[Backtest], sample: Sample) -> Drawn:
    _need(tests)
    rows = [pd.DataFrame({"held_out": t.name, "run_key": t.keys, C: t.c, "observed": t.actual, "predicted": t.predicted,
                          "lo": t.lo, "hi": t.hi, **t.baselines}) for t in tests]  # fmt: skip
    return law_plots.backtest_figure(tests, labels=_labels(sample)), pd.concat(rows)


def _drift(rolling: Sequence[Backtest], whole: Law | None) -> Drawn:
    _need(rolling, 2)
    rows = [
        {
            "fitted": t.law.n_used,
            "ratio": t.ratio,
            "mape": t.scores()["mape"],
            "param": name,
            "value": p.value,
            "lo": p.lo,
            "hi": p.hi,
        }
        for t in rolling
        for name, p in t.law.params.items()
    ]
    return law_plots.coefficient_drift_figure(rolling, whole), pd.DataFrame(rows)


def _need(things: Sequence[object] | pd.DataFrame, least: int = 1) -> None:
    if len(things) < least:
        raise ValueError("there are too few finished runs for it")


def _holdouts(good: pd.DataFrame) -> tuple[list[Backtest], list[Backtest]]:
    n, d, c, loss = (good[name].to_numpy(dtype=np.float64) for name in (N, D, C, "val_loss"))
    table = Table.of(n, d, c, loss, families=list(good["family_key"]), keys=list(good["run_key"]))
    return backtests(table, resamples=RESAMPLES), rolling_origin(table, resamples=RESAMPLES)


def _points(runs: pd.DataFrame, *more: str) -> pd.DataFrame:
    return runs[["run_key", "width", "data_fraction", "seed", N, D, C, "val_loss", "val_loss_se", *more, "status"]]


def _spectra_data(rows: pd.DataFrame) -> pd.DataFrame:
    names = ("run_key", "step", "layer", "alpha", "alpha_lo", "alpha_hi", "alpha_null_lo", "alpha_null_hi", "spectral_norm",
             "alpha_weighted", "log_norm", "trusted", "why", "status")  # fmt: skip
    return rows[[name for name in names if name in rows]]
