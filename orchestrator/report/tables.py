"""The tables of a report: the grid as status, the runs, the laws, what was left out, and the downloads."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import humanize
import pandas as pd
from great_tables import GT, loc, style

from scalespec.analysis import tables
from scalespec.analysis.laws import Law
from scalespec.analysis.laws.effective_params import StudyReading
from scalespec.analysis.laws.registry import form_of
from scalespec.analysis.laws.study import C, D, N, extra_axes
from scalespec.analysis.plots.axes import count, flop
from scalespec.analysis.plots.spectra import depth_key
from scalespec.analysis.plots.study import fraction
from scalespec.analysis.spectral import over_time
from scalespec.orchestrator.report.figures import Setting
from scalespec.orchestrator.report.headings import range_of
from scalespec.orchestrator.states import MARKS

MOST_MARKS = 8
"""Marks in one cell of the grid; beyond, a number stands before each kind of mark."""
MOST_ROWS = 150
"""With more runs than these the table has one row a grid point."""
MOST_REASONS = 60
"""Unfinished runs that are listed one by one."""
PLAIN_BYTES, ZIPPED_BYTES = 100_000, 300_000
"""A download up to the first is plain CSV; up to the second, after gzip, it is a .csv.gz; beyond, the page names the file."""


@dataclass(frozen=True)
class Cell:
    """One grid point."""

    marks: str
    loss: str
    """Mean over seeds of the final validation loss; empty where no run finished."""
    title: str
    """Every run with its state, as a tooltip."""
    trouble: bool


@dataclass(frozen=True)
class Matrix:
    """Width × data fraction for one combination of the further axes."""

    label: str
    fractions: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def missing_runs(runs: pd.DataFrame, plan: Mapping[str, Any] | None, asked: Collection[str]) -> pd.DataFrame:
    """The runs asked for (their keys) that have no result, as rows of `runs` with status `missing`, sizes from the plan."""
    known = set(runs["run_key"])
    planned = [run for run in plan["runs"] if run["run_key"] in asked] if plan else []
    rows = [
        {"run_key": run["run_key"], "width": run["width"], "data_fraction": float(Fraction(run["data_fraction"])), "seed": run["seed"],
         "status": "missing", "error": "no result", N: run[N], D: run[D], C: run[C]}
        | {name.rpartition(".")[2]: value for name, value in run["axes"].items()}
        for run in planned
        if run["run_key"] not in known
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=runs.columns)


def matrices(runs: pd.DataFrame) -> list[Matrix]:
    """The grid as status, one matrix for each combination of the further axes; `runs` includes what is missing."""
    axes = extra_axes(runs)
    groups = runs.groupby(axes, dropna=False, sort=True) if axes else [((), runs)]
    out = []
    for values, rows in groups:
        label = ", ".join(f"{axis} = {value}" for axis, value in zip(axes, values, strict=True))
        fractions = sorted(rows["data_fraction"].unique(), reverse=True)
        body = [
            (str(width), [_cell(rows[(rows["width"] == width) & (rows["data_fraction"] == f)]) for f in fractions])
            for width in sorted(rows["width"].unique())
        ]
        out.append(Matrix(label, [fraction(f) for f in fractions], body))
    return out


def _cell(runs: pd.DataFrame) -> Cell:
    states = Counter(runs["status"])
    marks = "".join(MARKS[state] * states[state] for state in MARKS)
    if len(marks) > MOST_MARKS:
        marks = " ".join(f"{states[state]}{MARKS[state]}" for state in MARKS if states[state])
    loss = runs.loc[runs["status"] == "done", "val_loss"].astype(float).mean()
    said = (
        f"{run.run_key}: {run.status}" + (f" ({run.error})" if isinstance(run.error, str) else "")
        for run in runs.itertuples()
    )
    return Cell(marks, f"{loss:.3f}" if loss == loss else "", "\n".join(said), any(state != "done" for state in states))


def unfinished(runs: pd.DataFrame) -> tuple[list[tuple[str, str, str]], int]:
    """(run, state, reason) of the runs that did not finish, and how many more there are than are listed."""
    bad = runs[runs["status"] != "done"]
    rows = [(str(r.run_key), str(r.status), r.error if isinstance(r.error, str) else "") for r in bad.itertuples()]
    return rows[:MOST_REASONS], max(0, len(rows) - MOST_REASONS)


def runs_table(runs: pd.DataFrame) -> str:
    """The runs, one row each; of a large study one row a grid point, with the mean and spread over seeds."""
    return _runs_each(runs) if len(runs) <= MOST_ROWS else _runs_by_cell(runs)


def _runs_each(runs: pd.DataFrame) -> str:
    axes = extra_axes(runs)
    ordered = runs.sort_values(
        [*axes, "width", "data_fraction", "seed"], ascending=[*([True] * len(axes)), True, False, True]
    )
    columns: dict[str, Any] = {
        "run": ordered["run_key"],
        "width": ordered["width"].astype(str),
        "data": [fraction(f) for f in ordered["data_fraction"]],
        "seed": ordered["seed"].astype(str),
        **{axis: ordered[axis].astype(str) for axis in axes},
        **_sizes(ordered),
        "steps": [f"{s:,}" for s in ordered["steps"]],
        "lr": [_plain(lr, "{:.3g}") for lr in ordered["lr"]],
        "val_loss": [
            _with_error(loss, se) for loss, se in zip(ordered["val_loss"], ordered["val_loss_se"], strict=True)
        ],
    }
    if ordered["val_accuracy"].notna().any():
        columns["accuracy"] = [_plain(a, "{:.2%}") for a in ordered["val_accuracy"]]
    columns["time"] = [_plain(s, "{:.0f} s") for s in ordered["duration_s"]]
    if ordered["cost_usd"].notna().any():
        columns["USD"] = [_plain(c, "{:.2f}") for c in ordered["cost_usd"]]
    columns["status"] = [f"{MARKS[state]} {state}" for state in ordered["status"]]
    return _html(GT(pd.DataFrame(columns), id="runs"), left=("run", "status"))


def _runs_by_cell(runs: pd.DataFrame) -> str:
    axes = extra_axes(runs)
    rows = []
    for _, cell in runs.groupby([*axes, "width", "data_fraction"], dropna=False, sort=True):
        first, good = cell.iloc[0], cell[cell["status"] == "done"]
        loss = good["val_loss"].astype(float)
        rows.append(
            {
                "width": str(first["width"]),
                "data": fraction(first["data_fraction"]),
                **{axis: str(first[axis]) for axis in axes},
                **{name: values[0] for name, values in _sizes(cell.head(1)).items()},
                "finished": f"{len(good)} of {len(cell)}",
                "val_loss, mean": _plain(loss.mean(), "{:.4f}"),
                "sd over seeds": _plain(loss.std(), "{:.4f}"),
            }
        )
    return _html(GT(pd.DataFrame(rows), id="runs"))


def _sizes(runs: pd.DataFrame) -> dict[str, list[str]]:
    return {"N": [count(n) for n in runs[N]], "D": [count(d) for d in runs[D]], "C (FLOP)": [flop(c) for c in runs[C]]}


def _plain(value: Any, form: str) -> str:
    return "" if value is None or value != value else form.format(value)


def _with_error(loss: Any, error: Any) -> str:
    return _plain(loss, "{:.4f}") + (f" ± {error:.4f}" if error is not None and error == error else "")


def laws_table(laws: Sequence[Law]) -> str:
    """Every law with its parameters, intervals and status, one group of rows a law."""
    rows = []
    for law in laws:
        status = ", ".join(law.to_json()["status"])
        group = f"{law.id} — {law.target}, {law.n_used} of {law.n_points} runs; {status}"
        for name, p in law.params.items():
            interval = "" if p.lo is None or p.hi is None else f"{p.lo:#.4g} to {p.hi:#.4g}"
            rows.append({"law": group, "parameter": name, "estimate": f"{p.value:#.4g}", "interval": interval})
        if not law.params:
            rows.append({"law": group, "parameter": "not fitted", "estimate": "", "interval": ""})
    if not rows:
        return ""
    shown = GT(pd.DataFrame(rows), id="laws", groupname_col="law").tab_style(
        style.text(weight="bold"), loc.row_groups()
    )
    return _html(shown, left=("parameter",))


def exponents(settings: Sequence[Setting]) -> str:
    """How the law changes with the further axes: one row a combination."""
    laws = [setting.law("chinchilla") for setting in settings]
    form = form_of("chinchilla")
    rows = [
        {
            "": setting.label,
            **{form.symbol(name): range_of(law.params[name], 3) if law else "" for name in form.cards},
            "status": ", ".join(law.to_json()["status"]) if law else "not fitted",
        }
        for setting, law in zip(settings, laws, strict=True)
    ]
    return _html(GT(pd.DataFrame(rows), id="exponents"), left=("", "status"))


def sensitivity_table(frame: pd.DataFrame) -> str:
    """The exponent of the best size under every convention for N and C."""
    if frame.empty:
        return ""
    shown = pd.DataFrame(
        {
            "N counts": frame["N"],
            "C counts": frame["C"],
            "α": [f"{x:.3f}" for x in frame["alpha"]],
            "β": [f"{x:.3f}" for x in frame["beta"]],
            "N_opt ∝ C^": [f"{x:.3f}" for x in frame["n_opt_exponent"]],
            "interval": [
                "" if lo is None or lo != lo else f"{lo:.3f} to {hi:.3f}"
                for lo, hi in zip(frame["lo"], frame["hi"], strict=True)
            ],
        }
    )
    return _html(GT(shown, id="sensitivity"), left=("N counts", "C counts"))


def effective_table(reading: StudyReading | None) -> str:
    """The effective parameters of each size, read from the average of the loss and, where recorded, from batches."""
    if reading is None:
        return ""
    frame = reading.table
    shown = {
        "width": frame["width"].astype(str),
        "N without embedding": [f"{x:,.0f}" for x in frame["params"]],
        "training loss, averaged": [f"{x:.3f}" for x in frame["loss"]],
        "N_eff of the average": [f"{x:.3g}" for x in frame["n_eff_ema"]],
    }
    if "n_eff_batches" in frame:
        shown |= {
            "average of N_eff of batches": [_plain(x, "{:.3g}") for x in frame["n_eff_batches"]],
            "clamped averages": [_plain(x, "{:.1%}") for x in frame["n_eff_clamped_ema"]],
            "clamped batches": [_plain(x, "{:.1%}") for x in frame["n_eff_clamped_batches"]],
        }
    return _html(GT(pd.DataFrame(shown), id="effective"), left=("width",))


def layers_table(rows: pd.DataFrame) -> str:
    """Where each layer of one run began and ended, and its slopes and changes of level over training; input to output."""
    moved = over_time.slopes(rows, ("alpha_hill", "stable_rank")) if len(rows) else pd.DataFrame()
    if moved.empty:
        return ""
    slopes = {(row.layer, row.metric): row for row in moved.itertuples()}
    levels = over_time.changes(rows, ("alpha_hill",))
    shown = []
    for layer in sorted({str(layer) for layer, _ in slopes}, key=depth_key):
        mine = rows[(rows["layer"] == layer) & (rows["status"] == "ok")].sort_values("step")
        first, last = mine.iloc[0], mine.iloc[-1]
        steps = levels.loc[levels["layer"] == layer, "step"]
        line = {"layer": layer}
        for name, head in (("alpha_hill", "alpha (Hill)"), ("stable_rank", "stable rank")):
            line[head] = f"{_plain(first[name], '{:.3g}')} → {_plain(last[name], '{:.3g}')}"
            slope = slopes.get((layer, name))
            line[f"{head} a decade"] = f"{slope.slope:+.2f} ({slope.lo:+.2f} to {slope.hi:+.2f})" if slope else ""
        distance = last["distance_from_init"]
        shown.append(
            {
                **line,
                "‖W − W₀‖/‖W₀‖": _plain(distance, "{:.2f}"),
                "level changes at": ", ".join(f"{s:,}" for s in steps),
            }
        )
    table = GT(pd.DataFrame(shown), id="layers").tab_style(style.css("white-space: nowrap"), loc.body())
    return _html(table, left=("layer", "level changes at"))


def correlation_table(frame: pd.DataFrame) -> str:
    """How the change of each spectral summary goes with the change of the loss."""
    if frame.empty:
        return ""
    shown = pd.DataFrame(
        {
            "summary": frame["metric"],
            "rank correlation": [f"{x:+.2f}" for x in frame["rho"]],
            "90 % interval": [
                _plain(lo, "{:+.2f}") + (f" to {hi:+.2f}" if hi == hi else "")
                for lo, hi in zip(frame["lo"], frame["hi"], strict=True)
            ],
            "steps compared": [f"{n:,}" for n in frame["pairs"]],
            "families": frame["families"].astype(str),
        }
    )
    return _html(GT(shown, id="correlation"), left=("summary",))


def _html(table: GT, left: Sequence[str] = ()) -> str:
    names = list(table._tbl_data.columns)
    table = table.cols_align("left", columns=[n for n in names if n in left])
    table = table.cols_align("right", columns=[n for n in names if n not in left])
    table = table.tab_options(table_font_size="13px", data_row_padding="3px", table_margin_left="0px", table_font_names="inherit",
                              table_border_top_style="none", table_border_bottom_style="none", row_group_padding="5px",
                              column_labels_font_weight="600", container_overflow_x="auto")  # fmt: skip
    return str(table.as_raw_html())


def conventions() -> list[tuple[str, str, str]]:
    """(symbol, column, meaning) of what the laws are about, from the schema."""
    shown = [("N", N), ("D", D), ("C", C), ("L", "val_loss"), ("±", "val_loss_se"), ("family", "family_key")]
    said = {column: tables.RUNS.field(column).metadata[b"description"].decode() for _, column in shown}
    return [(symbol, column, said[column].removeprefix(f"{symbol}: ")) for symbol, column in shown]


@dataclass(frozen=True)
class Download:
    """A file that the page carries."""

    name: str
    href: str
    size: str


def download(name: str, data: bytes) -> Download | None:
    """The file as a data URI, gzipped where that is needed; None where even that is too much for the page."""
    kind = "text/csv" if name.endswith(".csv") else "application/json" if name.endswith(".json") else "text/plain"
    if len(data) > PLAIN_BYTES:
        name, kind, data = f"{name}.gz", "application/gzip", gzip.compress(data, mtime=0)
    if len(data) > ZIPPED_BYTES:
        return None
    href = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return Download(name, href, humanize.naturalsize(len(data)))
