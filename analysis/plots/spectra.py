"""Layers of a checkpoint against depth, and of a run against training: what can be believed is filled, the rest is hollow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scalespec.analysis.plots.axes import caption, log_axis
from scalespec.analysis.plots.esd import esd_figure, short
from scalespec.analysis.plots.style import FULL, GREY, QUIET, figure, size_colors
from scalespec.analysis.spectral import NATIVE, fit_columns

Rows = Iterable[Mapping[str, Any]] | pd.DataFrame

TYPES: tuple[tuple[str, str, str], ...] = (
    ("embedding", r"embed|\bwte\b|\bwpe\b", "#999999"),
    ("query", r"\[q\]|quer|q_proj|\bwq\b|to_q\b", "#0072b2"),
    ("key", r"\[k\]|key\b|k_proj|\bwk\b|to_k\b", "#56b4e9"),
    ("value", r"\[v\]|value|v_proj|\bwv\b|to_v\b", "#009e73"),
    ("query, key, value", r"c_attn|qkv|in_proj|query_key_value", "#0072b2"),
    (
        "attention output",
        r"attn\.c_proj|attention[._]out|o_proj|out_proj|attn\.proj|\bwo\b|to_out|attention\.dense",
        "#cc79a7",
    ),
    ("MLP up", r"c_fc|up_proj|mlp_in|mlp_up|gate_proj|intermediate|fc1|w1\b|w3\b|h_to_4h|mlp\.0", "#d55e00"),
    ("MLP down", r"mlp\.c_proj|down_proj|mlp_out|mlp_down|output\.dense|fc2|w2\b|4h_to_h|mlp\.2", "#e69f00"),
    ("head", r"lm_head|classifier|pooler|\bhead\b|embed_out", "#000000"),
    ("convolution", r"conv|downsample", "#0072b2"),
)
"""What a layer's name says it is, first match; colours of Okabe & Ito."""
OTHER = ("dense", "#000000")

OVER, UNDER = 2.0, 6.0
GUIDES = (2.5, 4.0)
"""Bands and lines that a first report of a GPT-2 run used: https://www.msreni.ai/watch/my/models/learn/2025/02/01/watcher.html"""

TOP = 12.0
"""Axes of alpha end here; what lies above is drawn as ▲ at the edge."""

MOST_ESD = 12
LABELLED, FEW = 45, 6
"""Layers up to which names fit under an axis, upright and level."""

FOUR = (
    ("spectral_norm", "spectral norm max λ"),
    ("alpha_weighted", "weighted alpha"),
    ("log_norm", "log norm, log₁₀ Σ λ"),
)


def pictures(rows: Rows) -> dict[str, Figure]:
    """Every figure that the rows allow, by file name: for each path or run its last checkpoint, and with several its training.

    metrics: the four metrics against depth; alpha-depth; esd-*: up to twelve spectra, spread over depth; alpha-training;
    flow-*: step × depth. With several runs the names begin with the run.
    """
    table = frame(rows)
    out: dict[str, Figure] = {}
    runs = list(dict.fromkeys(table["run_key"]))
    for run in runs:
        prefix = "" if len(runs) == 1 else f"{_slug(PurePath(run).stem)}-"
        mine = table[table["run_key"] == run]
        last = mine[mine["step"] == mine["step"].max()]
        out[f"{prefix}metrics"] = metrics_figure(last)
        out[f"{prefix}alpha-depth"] = depth_figure(last)
        records = (
            _records(last[last["eigenvalues"].notna() & (last["num_evals"] >= 8)]) if "eigenvalues" in last else []
        )
        for at in np.unique(np.linspace(0, len(records) - 1, min(MOST_ESD, len(records))).round().astype(int)):
            out[f"{prefix}esd-{_slug(records[at]['layer'])}"] = esd_figure(records[at])
        if mine["step"].min() < mine["step"].max():
            out[f"{prefix}alpha-training"] = training_figure(mine)
            for metric in ("alpha_hill", "stable_rank"):
                if metric in mine and mine[metric].notna().any():
                    out[f"{prefix}flow-{metric}"] = flow_figure(mine, metric)
    return out


def frame(rows: Rows) -> pd.DataFrame:
    """Rows as a table in order of depth, with columns `type`, `depth` and `reading` (the profile's alpha) and missing ones null."""
    table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame([dict(row) for row in rows])
    if not len(table):
        raise ValueError("no layer to draw")
    for name in (
        "trusted",
        "why",
        "alpha_lo",
        "alpha_hi",
        "alpha_null_lo",
        "alpha_null_hi",
        "alpha",
        "num_evals",
        "error",
    ):
        if name not in table:
            table[name] = None
    order = {layer: at for at, layer in enumerate(sorted(set(table["layer"]), key=depth_key))}
    column = fit_columns(str(table["profile"].iloc[0]))["alpha"]
    table["type"] = [layer_type(layer, kind) for layer, kind in zip(table["layer"], table["kind"])]
    table["depth"] = table["layer"].map(order)
    table["reading"] = _numbers(table, column)
    return table.sort_values(["step", "depth"], kind="stable").reset_index(drop=True)


def depth_key(layer: str) -> tuple[Any, ...]:
    """Sorts layers from input to output: embeddings, blocks by number, within them q, k, v, o, up, down, then heads."""
    kind = layer_type(layer, "")
    after = kind == "head" or (kind != "convolution" and re.match(r"(linear|dense|fc|head|output|logits)\d*\b", layer))
    numbers = tuple(int(n) for n in re.findall(r"\d+", re.sub(r"\[\w+\]", "", layer)))
    within = [name for name, _, _ in (*TYPES, (*OTHER, ""))].index(kind)
    return (
        0 if kind == "embedding" else 2 if after else 1,
        numbers if kind == "convolution" else numbers[:1],
        within,
        layer,
    )


def layer_type(layer: str, kind: str) -> str:
    """What kind of matrix a name stands for."""
    for name, pattern, _ in TYPES:
        if re.search(pattern, layer, re.IGNORECASE):
            return name
    return "convolution" if kind.startswith("conv") else "embedding" if kind == "embedding" else OTHER[0]


def _numbers(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as floats; all missing where the table does not have it."""
    values = table[name] if name in table else [None] * len(table)
    return pd.Series(pd.to_numeric(pd.Series(values, index=table.index), errors="coerce"), dtype=float)


def color_of(kind: str) -> str:
    return next((color for name, _, color in TYPES if name == kind), OTHER[1])


def depth_figure(rows: Rows) -> Figure:
    """Alpha of each layer of one checkpoint, input to output, with its interval, its null and WeightWatcher's band."""
    table = frame(rows)
    with figure(FULL, 4.2) as (fig, (axes,)):
        _alpha_panel(axes, table)
        _layer_ticks(axes, table)
        _legend(axes, table)
        axes.set_title(_used(table), loc="left")
        caption(fig, _alpha_caption(table))
    return fig


def metrics_figure(rows: Rows) -> Figure:
    """Spectral norm, weighted alpha, log norm and alpha of each layer of one checkpoint."""
    table = frame(rows)
    with figure(FULL, 4.6, columns=2, rows=2) as (fig, panels):
        for axes, (name, label) in zip(panels, FOUR):
            values = _numbers(table, name)
            _dots(axes, table, values, _untrusted(table) if name == "alpha_weighted" else None)
            axes.set_ylabel(label)
            if name == "spectral_norm" and (values > 0).any():
                log_axis(axes, "y", label, short)
            _block_ticks(axes, table)
        _alpha_panel(panels[3], table)
        for guide in GUIDES:
            panels[3].axhline(guide, color=GREY, lw=0.6, ls=(0, (4, 3)))
        _block_ticks(panels[3], table)
        _legend(panels[0], table)
        fig.suptitle(_used(table), fontsize=8, ha="left", x=0.01)
        caption(fig, _alpha_caption(table) + " Dashed: alpha 2.5 and 4.")
    return fig


def flow_figure(rows: Rows, metric: str) -> Figure:
    """Step × depth heat map of one metric of one run; step 0 is marked, since alpha of random weights is noise."""
    table = frame(rows)
    steps, layers = sorted(table["step"].unique()), sorted(set(table["layer"]), key=depth_key)
    grid = table.pivot_table(index="layer", columns="step", values=metric, aggfunc="first", dropna=False)
    grid = grid.reindex(index=layers, columns=steps).astype(float)
    shown = np.ma.masked_invalid(grid.to_numpy())
    height = float(np.clip(0.9 + 0.13 * len(layers), 1.8, 8.0))
    with figure(FULL, height) as (fig, (axes,)):
        low, high = np.nanquantile(grid.to_numpy(), (0.02, 0.98)) if shown.count() else (0.0, 1.0)
        colours = mpl.colormaps["viridis"].with_extremes(bad="#eeeeee")
        mesh = axes.pcolormesh(shown, cmap=colours, norm=Normalize(low, max(high, low + 1e-12)), rasterized=True)
        fig.colorbar(mesh, ax=axes, label=metric, pad=0.02, extend="both")
        every = max(1, -(-len(steps) // 12))
        axes.set_xticks(np.arange(len(steps))[::every] + 0.5, [f"{step:,}" for step in steps[::every]])
        rank = max(1, -(-len(layers) // LABELLED))
        axes.set_yticks(np.arange(len(layers))[::rank] + 0.5, [_brief(layer) for layer in layers[::rank]], fontsize=6)
        axes.invert_yaxis()
        if steps[0] == 0:
            axes.axvline(1, color="white", lw=1.2)
        axes.set_xlabel("optimizer steps (evenly spaced checkpoints)")
        axes.set_title(f"{metric}, input (top) to output", loc="left")
        caption(
            fig,
            "Colours span 2–98 % of the values; grey: not computed."
            + (" White line: initial weights left of it." if steps[0] == 0 else ""),
        )
    return fig


def training_figure(rows: Rows) -> Figure:
    """Alpha of every layer over training, a panel a matrix type, and the median with quartiles over what is trusted.

    Untrusted points are hollow, values above the axis ▲, so that no outlier moves a curve nor vanishes.
    """
    table = frame(rows)
    kinds = [
        kind
        for kind in dict.fromkeys(table.sort_values("depth")["type"])
        if table.loc[table["type"] == kind, "reading"].notna().any()
    ]
    columns = min(3, len(kinds) + 1)
    high = -(-(len(kinds) + 1) // columns)
    with figure(FULL, 0.5 + 2.0 * high, columns=columns, rows=high) as (fig, panels):
        _summary_panel(panels[0], table)
        for axes, kind in zip(panels[1:], kinds):
            _type_panel(axes, table[table["type"] == kind], kind)
        for axes in panels[len(kinds) + 1 :]:
            axes.set_visible(False)
        for axes in panels[: len(kinds) + 1]:
            _band(axes)
            _step_axis(axes, table)
            axes.set_ylim(1, TOP)
        fig.suptitle(f"{_used(table)} × {table['step'].nunique()} checkpoints", fontsize=8, ha="left", x=0.01)
        caption(fig, _alpha_caption(table, bars=False) + " Darker lines: deeper layers.")
    return fig


def _summary_panel(axes: Axes, table: pd.DataFrame) -> None:
    used = table[(table["status"] == "ok") & ~_untrusted(table) & table["reading"].notna()]
    steps = np.sort(used["step"].unique())
    if len(steps):
        low, mid, high = np.array(
            [used.loc[used["step"] == at, "reading"].quantile(np.array([0.25, 0.5, 0.75])) for at in steps]
        ).T
        axes.fill_between(steps, low, high, color=QUIET, alpha=0.5, lw=0)
        axes.plot(steps, np.minimum(mid, TOP), "o-", color="black", ms=3)
    axes.set_title("median and quartiles of layers used", loc="left")
    axes.set_ylabel("alpha")


def _type_panel(axes: Axes, table: pd.DataFrame, kind: str) -> None:
    layers = sorted(set(table.loc[table["reading"].notna(), "layer"]), key=depth_key)
    shades = (
        size_colors([float(at + 1) for at in range(len(layers))])
        if len(layers) > 1
        else [mpl.colors.to_rgba(color_of(kind))]
    )
    for layer, shade in zip(layers, shades):
        mine = table[(table["layer"] == layer) & table["reading"].notna()]
        heights = np.minimum(mine["reading"].to_numpy(dtype=float), TOP)
        axes.plot(mine["step"], heights, "-", color=shade, lw=0.7, alpha=0.7)
        _marks(axes, mine["step"], mine["reading"], _untrusted(mine).to_numpy(), shade, 2.5, TOP)
    axes.set_title(kind, loc="left")


def _step_axis(axes: Axes, table: pd.DataFrame) -> None:
    steps = np.sort(table["step"].unique())
    positive = steps[steps > 0]
    if len(positive) > 2 and positive[-1] / positive[0] > 50:
        axes.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.4)
    axes.set_xlabel("optimizer steps")


def _alpha_panel(axes: Axes, table: pd.DataFrame) -> None:
    """Alpha against depth: interval as a bar, the null's 5–95 % as a grey box, failed fits × at the lower edge."""
    _band(axes)
    low, high = (_numbers(table, name).to_numpy() for name in ("alpha_null_lo", "alpha_null_hi"))
    axes.vlines(table["depth"], np.minimum(low, TOP), np.minimum(high, TOP), color=QUIET, lw=3.5, alpha=0.45)
    low, high = (_numbers(table, name).to_numpy() for name in ("alpha_lo", "alpha_hi"))
    axes.vlines(
        table["depth"],
        np.minimum(low, TOP),
        np.minimum(high, TOP),
        color=[color_of(kind) for kind in table["type"]],
        lw=0.8,
    )
    _dots(axes, table, table["reading"], _untrusted(table), TOP)
    failed = table[table["reading"].isna()]
    axes.plot(failed["depth"], np.full(len(failed), 1.15), "x", color=GREY, ms=4)
    axes.set_ylim(1, TOP)
    axes.set_ylabel("alpha")


def _band(axes: Axes) -> None:
    axes.axhspan(OVER, UNDER, color="#f0f0f0", lw=0, zorder=0)


def _dots(
    axes: Axes, table: pd.DataFrame, values: pd.Series, hollow: pd.Series | None = None, top: float = np.inf
) -> None:
    """One marker a layer; `hollow`: which are not trusted; `top`: where the axis clips."""
    flags = np.zeros(len(table), dtype=bool) if hollow is None else hollow.to_numpy()
    kept = values.notna().to_numpy()
    for kind in dict.fromkeys(table["type"]):
        mine = kept & (table["type"] == kind).to_numpy()
        _marks(axes, table["depth"][mine], values[mine], flags[mine], color_of(kind), 4, top)


def _marks(axes: Axes, x: Any, y: Any, hollow: Any, color: Any, size: float, top: float) -> None:
    """Markers of one colour: hollow where not trusted, ▲ at the edge where the axis clips."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    for face, group in ((color, ~hollow), ("white", hollow)):
        for marker, chosen in (("o", group & (y < top)), ("^", group & (y >= top))):
            if chosen.any():
                height = np.minimum(y[chosen], top)
                axes.plot(x[chosen], height, marker, color=color, mfc=face, ms=size, mew=0.8, clip_on=False)


def _untrusted(table: pd.DataFrame) -> pd.Series:
    """True where a check failed; a verdict that was not computed counts as neither."""
    return table["trusted"].map(lambda value: value is not None and value == False)  # noqa: E712  pandas may give numpy.bool_


def _used(table: pd.DataFrame) -> str:
    last = table[table["step"] == table["step"].max()]
    ok = (last["status"] == "ok") & last["reading"].notna()
    return f"{int((ok & ~_untrusted(last)).sum())} of {len(last)} layers used ({int(ok.sum())} have a fit)"


def _alpha_caption(table: pd.DataFrame, bars: bool = True) -> str:
    name = "alpha_ks2" if table["profile"].iloc[0] == NATIVE else "alpha"
    text = f"Profile {table['profile'].iloc[0]}, {name}. Filled: trusted or trust not computed; hollow: a check failed; ▲ above {TOP:g}; × no fit."
    if bars and _numbers(table, "alpha_lo").notna().any():
        text += " Bars: bootstrap 5–95 %. Grey boxes: 5–95 % of random matrices of that shape."
    return text + " Pale band: 2–6, WeightWatcher's convention."


def _legend(axes: Axes, table: pd.DataFrame) -> None:
    present = set(table["type"])
    names = [name for name, _, _ in TYPES if name in present] + ([OTHER[0]] if OTHER[0] in present else [])
    handles = [Line2D([], [], marker="o", ls="", color=color_of(name), ms=4, label=name) for name in names]
    axes.figure.legend(
        handles=handles, loc="outside upper right", ncols=min(5, len(handles)), handletextpad=0.1, columnspacing=0.8
    )


def _layer_ticks(axes: Axes, table: pd.DataFrame) -> None:
    """Names where there is room, else block numbers."""
    layers = table.drop_duplicates("depth").sort_values("depth")
    if len(layers) > LABELLED:
        _block_ticks(axes, table)
        return
    axes.set_xticks(layers["depth"], [_brief(layer) for layer in layers["layer"]], rotation=90, fontsize=6)


def _block_ticks(axes: Axes, table: pd.DataFrame) -> None:
    """A tick where a new block begins; the names of a few layers."""
    layers = table.drop_duplicates("depth").sort_values("depth")
    if len(layers) <= FEW:
        axes.set_xticks(layers["depth"], [_brief(layer) for layer in layers["layer"]])
        return
    ticks, names, before = [], [], None
    for layer, depth in zip(layers["layer"], layers["depth"]):
        found = re.search(r"\d+", layer)
        if found and found.group() != before:
            before = found.group()
            ticks.append(depth)
            names.append(before)
    every = max(1, -(-len(ticks) // 16))
    axes.set_xticks(ticks[::every], names[::every])
    axes.set_xlabel("block, input to output")


def _brief(layer: str) -> str:
    """A layer's name without what all names of a model have."""
    short = re.sub(r"^(model|transformer|encoder|bert|module)\.", "", re.sub(r"\.(weight|kernel)(?=$|\[|:)", "", layer))
    return re.sub(r"\b(layers?|h|blocks?)\.", "", short).replace("attention.self.", "").replace("attention.", "attn.")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries with None for what is missing."""
    return [
        {str(name): value if _known(value) else None for name, value in row.items()} for row in table.to_dict("records")
    ]


def _known(value: Any) -> bool:
    return not (value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)))
