"""The page is self-contained and true to its tables, whatever became of the study."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
import warnings
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from counted import Counted

from scalespec.analysis import tables
from scalespec.analysis.laws import Law, frontier, study_laws
from scalespec.analysis.plots.axes import count, flop
from scalespec.analysis.plots.esd import short
from scalespec.orchestrator.report import headings, page
from scalespec.orchestrator.report.figures import LARGE, Picture, inline, picture, svg_of
from scalespec.orchestrator.report.headings import Sample
from scalespec.orchestrator.report.tables import download, layers_table, matrices, missing_runs
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study.file import parse_study
from scalespec.orchestrator.terminal.progress import duration
from scalespec.trainables.files import LocalFiles
from studies import toy, toy_yaml

BYTES = 2_000_000
EVIL = '<script>alert(1)</script> & "quotes"'
LAYERS = {"embed.weight": (256, 64), "blocks.0.mlp.weight": (256, 128), "head.weight": (256, 64)}


def runs_of(
    widths=(8, 11, 16, 23, 32, 45, 64),
    fractions=(1.0, 0.5, 0.25, 0.125),
    seeds=(0, 1),
    dropouts=(None,),
    noise=0.003,
    **bad: Any,
) -> pa.Table:
    """A finished study whose losses follow L = 1 + 12 N^-0.35 + 30 D^-0.4; `bad` maps a run's number to (status, error)."""
    rng = np.random.default_rng(0)
    rows = []
    for dropout in dropouts:
        for width in widths:
            for fraction in fractions:
                for seed in seeds:
                    status, error = bad.get(f"run{len(rows)}", ("done", None))
                    n, d = 4 * width * width, int(60_000 * fraction)
                    loss = (1 + 12 * n**-0.35 + 30 * d**-0.4) * np.exp(noise * rng.standard_normal())
                    name = f"w{width:04d}-f{int(100 * fraction):03d}-s{seed}" + (
                        f"-{dropout}" if dropout is not None else ""
                    )
                    done = status == "done"
                    rows.append(
                        {
                            "study": "toy", "run_key": name, "family_key": f"w{width}-s{seed}-{dropout}", "task": "toy_task:Toy",
                            "width": width, "data_fraction": fraction, "seed": seed, "batch_size": 16, "lr": 0.01, "lr_base": 0.01,
                            "optimizer": "adamw", "schedule": "wsd", "steps": d // 16, "samples": d, "unique_samples": d,
                            "params_total": n + 100, "params_embedding": 50, "params_matmul": n, "flops_train": 6.0 * n * d,
                            "flops_6nd": 6.0 * n * d, "flops_matmul": 6.0 * n * d, "flops_causal": 6.0 * n * d,
                            "flops_convention": "executed FLOPs", "val_loss": loss if done else None,
                            "val_loss_se": 0.01 if done else None, "val_loss_select": loss * 1.001 if done else None,
                            "val_loss_report": loss * 0.999 if done else None, "val_accuracy": float(np.exp(-loss / 3)) if done else None,
                            "train_loss_ema": loss if done else None, "status": status, "error": error, "precision": "fp32",
                            "device": "cpu", "workers": 1, "duration_s": 3.0, "started_at": pd.Timestamp("2026-01-02T03:04", tz="UTC"),
                            "code_version": "0.1.0+abc", **({"dropout": dropout} if dropout is not None else {}),
                        }
                    )  # fmt: skip
    axes = {"dropout": pa.float64()} if dropouts != (None,) else {}
    return tables.from_rows(rows, tables.with_axes(tables.RUNS, axes))


def curves_of(runs: pa.Table, points: int = 12) -> pa.Table:
    """Loss curves that fall from 6 to each run's final loss; a run without one ends at 5."""
    rows = []
    for run in runs.to_pylist():
        final = run["val_loss"] or 5.0
        for share in np.linspace(0, 1, points):
            value = final + (6 - final) * (1 - share) ** 2
            place = {
                "step": int(run["steps"] * share),
                "samples": int(run["samples"] * share),
                "flops": run["flops_train"] * share,
            }
            rows += [
                {"run_key": run["run_key"], **place, "metric": name, "value": value}
                for name in ("val_loss", "train_loss")
            ]
    return tables.from_rows(rows, tables.CURVES)


def spectra_of(runs: pa.Table, *, trusted: bool = True) -> tuple[pa.Table, pa.Table]:
    """Three layers at the first and the last step of each run, and their summaries."""
    rows, summary = [], []
    for run in runs.to_pylist():
        for step in (0, run["steps"]):
            alpha = 5.0 - 1e-4 * step
            at = {"run_key": run["run_key"], "step": step, "profile": "ww-0.7.7"}
            rows += [
                {
                    **at, "layer": layer, "samples": step * 16, "kind": "dense", "rows": shape[0], "cols": shape[1], "num_evals": shape[1],
                    "alpha": alpha + 0.1 * i, "alpha_lo": alpha - 0.3, "alpha_hi": alpha + 0.5, "D": 0.05, "spectral_norm": 3.0 + i,
                    "alpha_weighted": 2.0, "log_norm": 1.0, "status": "ok", "trusted": trusted, "why": None if trusted else "short tail",
                }
                for i, (layer, shape) in enumerate(LAYERS.items())
            ]  # fmt: skip
            summary.append(
                {**at, "alpha_median": alpha, "mean_log_norm": 1 + 1e-3 * step, "n_used": 3 * trusted, "n_total": 3}
            )
    return tables.from_rows(rows, tables.SPECTRA), tables.from_rows(summary, tables.SPECTRA_SUMMARY)


def made_of(
    runs: pa.Table, *, spectra: bool = True, trusted: bool = True, asked: pa.Table | None = None
) -> dict[str, pa.Table]:
    """`asked`: the runs that were asked for, where they are not those that have a result."""
    rows, summary = spectra_of(runs if spectra else runs.slice(0, 0), trusted=trusted)
    keys = (runs if asked is None else asked)["run_key"].to_pylist()
    ask = {"stage": "grid", "ask": 1, "round": 1, "role": "result", "why": "the grid"}
    asks = tables.from_rows([{**ask, "run_key": key} for key in keys], tables.ASKS)
    return {"runs": runs, "curves": curves_of(runs), "spectra": rows, "spectra_summary": summary, "asks": asks}


def laws_of(runs: pa.Table) -> list[Law]:
    return study_laws(tables.to_pandas(runs), resamples=60)


class Page(HTMLParser):
    """Every address, id and heading of a page; complains about elements that are not closed."""

    VOID = ("meta", "br", "link", "img", "hr", "input", "use", "path", "rect", "stop")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset") and value:
                self.addresses.append(value)
            if name == "id" and value:
                self.ids.append(value)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open, tag
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if any(tag in self.open for tag in ("h1", "h2", "h3")):
            self.headings[-1] += data


class ObjectStore(StudyStore):
    """A study that is on no local disk, as behind s3://."""

    @property
    def files(self) -> Counted:
        return Counted(LocalFiles(self.root))


def write(
    folder: Any, made: dict[str, pa.Table], laws: Any, study: Any = None, kind: Any = StudyStore
) -> tuple[Page, str]:
    study = study or toy()
    unit = "tokens" if study.task["name"] == "gpt" else "images"
    page.write(study, kind(str(folder)), made, laws, unit)
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    return Page(text), text


def assert_self_contained(page: Page, text: str) -> None:
    assert len(text.encode()) < BYTES
    outside = [a for a in page.addresses if not a.startswith(("#", "data:"))]
    assert not outside
    assert not re.search(r"@import|url\((?!#|\"?#|&quot;#|data:)", text)
    assert "<script" not in text.lower()
    assert "default-src 'none'" in text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    runs = runs_of()
    laws = laws_of(runs)
    page, text = write(folder, made_of(runs), laws)
    return folder, page, text, laws


def test_report_is_self_contained(finished):
    _, page, text, _ = finished
    assert_self_contained(page, text)


def test_references_inside_the_page_lead_somewhere_and_ids_are_unique(finished):
    _, page, text, _ = finished
    svg_ids = [name for name in page.ids if re.search(r"-(figure|axes|patch)_\d+$", name)]
    assert len(svg_ids) == len(set(svg_ids))
    assert len(svg_ids) > 20
    inner = {a[1:] for a in page.addresses if a.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert inner <= set(page.ids)


def test_the_answer_stands_at_the_top_with_its_intervals(finished):
    _, page, text, laws = finished
    law = next(law for law in laws if law.form == "chinchilla")
    for name in ("alpha", "beta", "E", "a"):
        p = law.params[name]
        assert f"<b>{p.value:#.3g}</b><div>{p.lo:#.3g} to {p.hi:#.3g}</div>" in text
    assert f"α = {headings.range_of(law.params['alpha'])} in size" in page.headings[0]
    assert text.index('id="answer"') < text.index('id="asked"') < text.index('id="grid"')


def test_headings_state_findings(finished):
    _, page, _, laws = finished
    size = next(law for law in laws if law.form == "n_opt")
    assert any(
        f"best model size grows as C{headings.range_of(size.params['a'])}" in heading for heading in page.headings
    )
    assert headings.budgets(laws)[1] == frontier.BUDGETS
    assert any(re.search(r"^Held out, .* is missed by [\d.]+ %", heading) for heading in page.headings)
    assert any(
        "Every alpha passes its checks" in heading or "every alpha passes its checks" in heading
        for heading in page.headings
    )


def test_every_figure_is_in_the_page_and_beside_it_with_its_data(finished):
    folder, page, text, _ = finished
    files = {path.name for path in (folder / "report" / "figures").iterdir()}
    names = {name.removesuffix(".svg") for name in files if name.endswith(".svg")}
    assert {
        "curves",
        "surface",
        "frontier",
        "isoflop",
        "accuracy",
        "backtest",
        "drift",
        "alpha-training",
        "alpha-depth",
        "selection",
    } <= names
    assert {f"{name}.csv" for name in names} == {name for name in files if name.endswith(".csv")}
    for name in names:
        assert name in page.ids
        assert len(pd.read_csv(folder / "report" / "figures" / f"{name}.csv")) > 0
        assert (folder / "report" / "figures" / f"{name}.svg").read_text().startswith("<svg")
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', text)) == len(names)


def test_a_choice_is_reported_where_it_was_not_made(finished):
    _, page, text, _ = finished
    assert any(re.search(r"^Chosen from 7 on one half of validation, seed 0, width 64 led", h) for h in page.headings)
    assert "on the other half, seed 1" in text
    assert "Chosen on all examples" not in text  # this study has no per-example losses on disk


def test_effective_parameters_are_refitted_where_kaplan_s_constants_mean_nothing(finished):
    _, page, text, _ = finished
    assert "Effective parameters by constants refitted from these runs" in page.headings
    assert "Not by Kaplan" in text
    assert 'id="effective"' in text


def test_effective_parameters_of_gpt2_tokens_show_what_batches_add(tmp_path):
    runs = runs_of(seeds=(0,))
    last = [
        {"run_key": run["run_key"], "step": run["steps"], "samples": run["samples"], "flops": run["flops_train"], "metric": m, "value": v}
        for run in runs.to_pylist()
        for m, v in (("n_eff_batches", 1e9), ("n_eff_clamped_ema", 0.0), ("n_eff_clamped_batches", 0.25))
    ]  # fmt: skip
    made = made_of(runs)
    made["curves"] = pa.concat_tables([made["curves"], tables.from_rows(last, tables.CURVES)])
    study = toy(data={"tokenizer": "gpt2"})
    page, text = write(tmp_path, made, laws_of(runs), study)
    assert any(
        h.startswith("Effective parameters by Kaplan's constants: read from single batches") for h in page.headings
    )
    assert "25.0%" in text


def test_the_embedded_table_is_the_table(finished):
    _, page, _, laws = finished
    data = [base64.b64decode(a.partition(",")[2]) for a in page.addresses if a.startswith("data:")]
    runs = pd.read_csv(io.BytesIO(data[0]), float_precision="round_trip")  # pandas 2's default loses the last bit
    whole = tables.to_pandas(runs_of())
    assert list(runs["run_key"]) == list(whole["run_key"])
    np.testing.assert_array_equal(runs["val_loss"], whole["val_loss"])
    assert json.loads(data[1]) == [law.to_json() for law in laws]
    assert parse_study(data[2].decode(), "study.yaml") == toy()


def test_writing_again_gives_the_same_bytes_and_leaves_no_stale_figure(tmp_path):
    runs = runs_of(widths=(8, 16), fractions=(1.0,), seeds=(0,))
    write(tmp_path, made_of(runs), [])
    assert (tmp_path / "report/figures/alpha-depth.svg").exists()
    _, first = write(tmp_path, made_of(runs, spectra=False), [], kind=ObjectStore)
    assert not (tmp_path / "report/figures/alpha-depth.svg").exists()
    _, again = write(tmp_path, made_of(runs, spectra=False), [])
    assert first == again


@pytest.mark.parametrize(
    "runs",
    [
        runs_of(widths=(8,), fractions=(1.0,), seeds=(0,)),
        runs_of(widths=(8, 16), fractions=(1.0,), seeds=(0,)),
        runs_of(
            widths=(8, 16),
            fractions=(1.0, 0.5),
            **{f"run{i}": ("diverged", "non_finite: loss is nan") for i in range(8)},
        ),
        runs_of(
            widths=(8, 16, 32), fractions=(1.0, 0.5), seeds=(0,), **{f"run{i}": ("failed", "oom") for i in range(5)}
        ),
        runs_of().slice(0, 0),
    ],
    ids=["one run", "two runs", "all diverged", "one finished", "no run"],
)
def test_every_study_gets_a_report(tmp_path, runs):
    page, text = write(tmp_path, made_of(runs, spectra=False), laws_of(runs))
    assert_self_contained(page, text)
    bad = [run for run in runs.to_pylist() if run["status"] != "done"]
    for run in bad:
        assert run["run_key"] in page.text
        assert run["error"] in page.text
    if not runs.num_rows:
        assert "No run has a result yet" in page.text


NEVER_BEGAN = {
    "status": "failed", "error": "oom: no memory", "steps": 0, "samples": 0, "unique_samples": 0, "device": "unknown", "duration_s": 0.0,
    **dict.fromkeys(("flops_train", "flops_6nd", "flops_matmul", "flops_causal"), 0.0),
    **dict.fromkeys(("val_loss", "val_loss_se", "val_loss_select", "val_loss_report", "val_accuracy", "train_loss_ema")),
}  # fmt: skip
"""What `engine.worker.fail` commits of a run whose worker died."""

DIVERGED = {"status": "diverged", "error": "non_finite: loss is nan", "val_loss": None, "val_accuracy": np.nan}


@pytest.mark.parametrize(
    ("changed", "which", "point"),
    [
        (NEVER_BEGAN, {0}, None),
        (NEVER_BEGAN, {5}, None),
        (NEVER_BEGAN, set(range(1, 6)), 0.0),
        (NEVER_BEGAN, set(range(6)), None),
        (NEVER_BEGAN, set(range(6)), np.nan),
        (DIVERGED, set(range(6)), np.inf),
        (DIVERGED, set(range(6)), None),
        ({"val_loss": np.nan, "val_loss_se": np.nan, "duration_s": np.nan}, {0}, None),
        ({"val_loss": 0.0, "val_accuracy": 0.0}, {0, 1}, 0.0),
        ({"val_loss": 1.5, "val_accuracy": 1.0}, set(range(6)), 1.5),
        ({"samples": 0, "flops_train": 0.0, "flops_6nd": 0.0}, {2}, None),
        ({"params_matmul": 0}, {2}, None),
    ],
    ids=["first failed", "last failed", "all but one failed", "all failed", "all failed, NaN curves", "all diverged, infinite curves",
         "all diverged", "NaN", "zero losses", "equal losses", "no data", "no parameters"],
)  # fmt: skip
def test_whatever_became_of_the_runs_there_is_a_report_without_a_fault(tmp_path, changed, which, point):
    """`which` runs have the columns `changed`; `point`: every value of every curve."""
    rows = runs_of(widths=(8, 16, 32), fractions=(1.0, 0.5), seeds=(0,)).to_pylist()
    runs = tables.from_rows([row | (changed if at in which else {}) for at, row in enumerate(rows)], tables.RUNS)
    made = made_of(runs)
    if point is not None:
        at = made["curves"].schema.get_field_index("value")
        made["curves"] = made["curves"].set_column(
            at, tables.CURVES.field("value"), pa.array([point] * made["curves"].num_rows)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*constrained_layout not applied")  # a marker far beyond its axes
        page, text = write(tmp_path, made, laws_of(runs))
    assert_self_contained(page, text)
    assert "fault of scalespec" not in page.text


def test_numbers_that_are_none_are_written_all_the_same():
    for name in (count, flop, short):
        assert name(0.0) == "0"
        for value in (np.nan, np.inf, -np.inf, -3.0, 1e-300, 1e308):
            assert name(value)
    assert (flop(np.nan), flop(np.inf), flop(-np.inf)) == ("–", "∞", "−∞")
    assert (count(np.nan), duration(float("nan")), duration(float("inf"))) == ("–", "–", "–")
    assert flop(3e18) == "3·10¹⁸"


def test_hundreds_of_runs_stay_below_the_limit_and_are_aggregated(tmp_path):
    runs = runs_of(
        widths=tuple(round(8 * 2 ** (i / 2)) for i in range(10)), fractions=tuple(2.0**-i for i in range(6)), seeds=tuple(range(6)),
        run7=("diverged", "loss_bound"), run300=("failed", "oom"),
    )  # fmt: skip
    assert runs.num_rows == 360
    made = made_of(runs, spectra=False)
    made["curves"] = curves_of(runs, points=120)
    page, text = write(tmp_path, made, laws_of(runs.slice(0, 90)))
    assert_self_contained(page, text)
    assert "358 of 360 runs finished, 1 diverged, 1 failed" in page.text
    assert text.count("<tr>") < 250
    assert "✔✔✔✔✔↗" in page.text
    packed = next(a for a in page.addresses if a.startswith("data:application/gzip"))
    assert len(pd.read_csv(io.BytesIO(gzip.decompress(base64.b64decode(packed.partition(",")[2]))))) == 360
    drawn = pd.read_csv(tmp_path / "report/figures/curves.csv")
    assert len(drawn) <= 20_000
    assert drawn.groupby("curve").size().max() <= 400
    assert set(drawn["seeds"]) == {1, 5, 6}


def test_a_further_axis_gives_figures_and_exponents_for_each_of_its_values(tmp_path):
    runs = runs_of(widths=(8, 16, 32, 64), seeds=(0,), dropouts=(0.0, 0.2))
    page, text = write(tmp_path, made_of(runs, spectra=False), laws_of(runs))
    assert_self_contained(page, text)
    assert {"curves-dropout-0.0", "curves-dropout-0.2", "surface-dropout-0.2"} <= set(page.ids)
    assert "at dropout=0.0 and C" in page.headings[0]
    assert "beyond the intervals" in page.headings[0]
    assert "2 values of dropout" in page.text
    table = text[text.index('id="exponents"') :]
    assert "dropout=0.2" in table[: table.index("</table>")]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A task that cannot be imported, hostile text, a failed run, one without a result, untrusted spectra and no laws."""
    folder = tmp_path_factory.mktemp("troubled")
    whole = runs_of(widths=(8, 16), fractions=(1.0, 0.5, 0.25), seeds=(0,), run3=("failed", f"bug: {EVIL}"))
    StudyStore(str(folder)).write_json("plan.json", {"runs": planned(whole)})
    study = parse_study(toy_yaml(task={"name": "gone.away:Task"}), "study.yaml")
    return write(folder, made_of(whole.slice(0, 5), trusted=False, asked=whole), [], study)


def test_a_troubled_study_gets_a_report_without_laws(troubled):
    page, text = troubled
    assert_self_contained(page, text)
    assert "The runs do not determine a scaling law" in page.headings[0]
    assert "gone.away:Task" in page.text
    assert Sample().loss == "nats"
    assert "4 of 6 runs finished, 1 failed, 1 missing" in page.text
    assert "w0016-f025-s0" in page.text


def test_text_from_outside_is_escaped(troubled):
    page, text = troubled
    assert text.count(html.escape(EVIL).replace("&quot;", "&#34;")) == 2
    assert EVIL in page.text


def test_untrusted_alphas_are_said_to_be(troubled):
    page, _ = troubled
    assert any("no alpha can be trusted (short tail: 30 of 30)" in heading for heading in page.headings)


def planned(runs: pa.Table) -> list[dict[str, Any]]:
    names = ("run_key", "width", "seed", "params_matmul", "samples", "flops_train")
    return [
        {name: run[name] for name in names} | {"data_fraction": str(run["data_fraction"]), "axes": {}}
        for run in runs.to_pylist()
    ]


def test_missing_are_the_runs_asked_for_without_a_result():
    whole = runs_of(widths=(8, 16), fractions=(1.0, 0.5, 0.25), seeds=(0,))
    plan, asked = planned(whole), set(whole["run_key"].to_pylist())
    some = tables.to_pandas(whole.slice(0, 4))
    missing = missing_runs(some, {"runs": plan}, asked)
    assert list(missing["run_key"]) == [run["run_key"] for run in plan[4:]]
    assert missing["status"].eq("missing").all()
    stale = {"runs": [*plan, *({**run, "run_key": f"old-{i}"} for i, run in enumerate(plan))]}
    assert missing_runs(tables.to_pandas(whole), stale, asked).empty
    assert missing_runs(some, None, asked).empty


def test_the_grid_shows_fractions_and_mean_losses():
    runs = tables.to_pandas(runs_of(widths=(8, 16), fractions=(1.0, 1 / 3), run1=("diverged", "non_finite")))
    (matrix,) = matrices(runs)
    assert matrix.fractions == ["1", "1/3"]
    width, cells = matrix.rows[0]
    assert (width, cells[0].marks, cells[0].trouble) == ("8", "✔↗", True)
    assert cells[0].loss == f"{runs['val_loss'].iloc[0]:.3f}"
    mean = runs[(runs["width"] == 16) & (runs["data_fraction"] == 1)]["val_loss"].mean()
    assert matrix.rows[1][1][0].loss == f"{mean:.3f}"


def test_a_figure_that_cannot_be_drawn_is_one_line():
    def fails():
        raise ValueError("the reason")

    shown = picture("name", lambda: "heading", "what is drawn", fails)
    assert (shown.svg, shown.heading, shown.missing) == ("", "heading", "the reason")

    def broken():
        raise KeyError("a bug")

    shown = picture("name", lambda: "heading", "what is drawn", broken)
    assert (shown.svg, shown.heading) == ("", "heading")
    assert "a fault of scalespec" in shown.missing
    assert "KeyError: 'a bug'" in shown.missing
    shown = picture("name", broken, "What is drawn.", fails)
    assert (shown.svg, shown.heading) == ("", "What is drawn")


def test_inline_svg_has_ids_of_its_own_and_no_address():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1"><metadata>http://x</metadata>'
        '<g id="a" clip-path="url(#c)"><use xlink:href="#m"/></g><image xlink:href="data:image/png;base64,AA=="/></svg>'
    )
    out = inline(Picture("fig", "h", 'says "so"', svg))
    assert "http" not in out
    assert 'id="fig-a" clip-path="url(#fig-c)"' in out
    assert '<use href="#fig-m"/>' in out
    assert 'href="data:image/png' in out
    assert 'aria-label="says &quot;so&quot;"' in out


def test_large_figures_become_pixels_and_too_many_are_left_to_their_files():
    from scalespec.analysis.plots.style import figure, to_svg

    x = np.linspace(0, 1, 4000)
    with figure() as (fig, (axes,)):
        axes.plot(x, x**2, "o")
        axes.set_xlabel("still text")
    assert len(to_svg(fig)) > LARGE
    svg = svg_of(fig)
    assert "data:image/png" in svg
    assert "still text" in svg
    assert len(svg) < LARGE
    pictures = [Picture(str(i), "", "", "x" * size) for i, size in enumerate((900_000, 500_000, 400_000))]
    assert [shown.name for shown in page._fitting(pictures)] == ["1", "2"]


def test_downloads_shrink_and_then_give_way():
    plain = download("runs.csv", b"a,b\n")
    assert plain is not None
    assert plain.href == "data:text/csv;base64," + base64.b64encode(b"a,b\n").decode()
    packed = download("runs.csv", b"a,b\n" * 100_000)
    assert packed is not None
    assert packed.name == "runs.csv.gz"
    assert download("runs.csv", np.random.default_rng(0).bytes(600_000)) is None


def test_exponents_are_raised_and_the_rest_is_escaped():
    assert (
        page.raised("C^0.54 [0.21, 0.88] and N^−α <b>") == "C<sup>0.54</sup> [0.21, 0.88] and N<sup>−α</sup> &lt;b&gt;"
    )


def test_what_is_said_of_the_laws_counts_them(finished):
    _, page, _, laws = finished
    clean = sum(law.clean for law in laws)
    assert f"{clean} of {len(laws)} laws are without reserve" in page.headings
    assert headings.laws([]) == "No law was fitted"
    assert any(heading.startswith("By the choice of N and C alone") for heading in page.headings)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({}, "No run has a result yet"),
        ({"done": 1}, "The one run finished"),
        ({"done": 4}, "All 4 runs finished"),
        ({"done": 2, "diverged": 1, "missing": 3}, "2 of 6 runs finished, 1 diverged, 3 missing"),
    ],
)
def test_status_in_words(states, said):
    assert headings.status(states) == said


def test_the_table_of_layers_has_slopes_and_the_step_of_a_change():
    """A layer whose alpha falls by 0.5 a decade and drops at step 1000, and one that was measured at two steps only."""
    steps = [0, 1, 10, 100, 1000, 10_000, 20_000]
    alpha = [5.0, 5.01, 4.99, 5.0, 3.01, 3.0, 2.99]
    base = {"run_key": "r", "profile": "ww-0.7.7", "kind": "dense", "rows": 8, "cols": 8, "status": "ok", "samples": 1}
    rows = [
        {**base, "layer": "blocks.0.mlp_in.weight", "step": s, "alpha_hill": a, "stable_rank": 10 - np.log10(max(s, 1)), "distance_from_init": 0.5}
        for s, a in zip(steps, alpha, strict=True)
    ]  # fmt: skip
    rows += [{**base, "layer": "head.weight", "step": s, "alpha_hill": 2.0} for s in (0, 10)]
    page = layers_table(tables.to_pandas(tables.from_rows(rows, tables.SPECTRA)))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells[0] == "blocks.0.mlp_in.weight"
    assert cells[1] == "5 → 2.99"
    assert cells[4].startswith("-1.00 (-1.00 to -1.00)")
    assert cells[-1] == "1,000"
    assert "head.weight" not in page
    assert layers_table(tables.to_pandas(tables.from_rows([], tables.SPECTRA))) == ""
