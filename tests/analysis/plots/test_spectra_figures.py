"""Figures of spectra: nothing excluded is hidden, clipped values stay, and the text of a figure says what it shows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis import tables
from scalespec.analysis.plots.axes import covered_markers
from scalespec.analysis.plots.esd import esd_figure
from scalespec.analysis.plots.spectra import (
    TOP,
    depth_figure,
    depth_key,
    flow_figure,
    frame,
    layer_type,
    metrics_figure,
    pictures,
    training_figure,
)
from scalespec.analysis.plots.style import to_svg
from scalespec.analysis.spectral import layer_rows


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LAYERS = {
    "wte.weight": (normal(400, 150), "embedding"),
    "h.0.attn.c_attn.weight": (normal(150, 450, seed=1), "dense"),
    "h.0.mlp.c_fc.weight": (normal(200, 150, seed=2), "dense"),
    "h.1.mlp.c_fc.weight": (normal(200, 150, seed=3), "dense"),
    "broken.weight": (normal(60, 40) * np.nan, "dense"),
    "tiny.weight": (normal(6, 4), "dense"),
}


@pytest.fixture(scope="module", params=["ww-0.7.7", "native"])
def rows(request):
    """Three checkpoints of a small model; the last without a verdict."""
    found = []
    for step in (0, 10, 1000):
        for name, (weight, kind) in LAYERS.items():
            for row in layer_rows(name, weight * (1 + step), kind=kind, profile=request.param, trust=step < 1000):
                found.append({"run_key": "model", "step": step, **row})
    return found


def last(rows):
    return [row for row in rows if row["step"] == 1000]


def marks(axes, marker):
    return sum(len(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == marker)


def test_pictures_are_named_after_what_they_show(rows):
    found = pictures(rows)
    assert {"metrics", "alpha-depth", "alpha-training", "flow-alpha_hill", "flow-stable_rank"} <= set(found)
    assert sum(name.startswith("esd-") for name in found) >= 4
    single = pictures(last(rows))
    assert "alpha-training" not in single
    both = pictures([*last(rows), *({**row, "run_key": "a/other.safetensors"} for row in last(rows))])
    assert {"model-metrics", "other-metrics"} <= set(both)


def test_equal_rows_give_equal_pictures_also_from_a_stored_table(rows):
    table = tables.from_rows(
        [{k: v for k, v in row.items() if k in tables.SPECTRA.names} for row in last(rows)], tables.SPECTRA
    )
    for draw in (depth_figure, lambda made: esd_figure(made[1])):
        assert to_svg(draw(last(rows))) == to_svg(draw(table.to_pylist()))


def test_every_layer_is_in_the_depth_figure(rows):
    axes = depth_figure(last(rows)).axes[0]
    layers = len({row["layer"] for row in rows})
    assert marks(axes, "o") + marks(axes, "^") + marks(axes, "x") == layers
    assert "of" in axes.get_title(loc="left")


def test_clipped_values_are_triangles_and_untrusted_ones_hollow():
    fixed = {"run_key": "r", "step": 0, "profile": "ww-0.7.7", "kind": "dense", "status": "ok", "rows": 9, "cols": 9}
    made = [
        fixed | {"layer": "h.0.w", "alpha": 3.0, "trusted": True},
        fixed | {"layer": "h.1.w", "alpha": 99.0, "trusted": False},
        fixed | {"layer": "h.2.w", "alpha": 4.0, "trusted": None},
        fixed | {"layer": "h.3.w", "alpha": None, "status": "failed_fit"},
    ]
    axes = depth_figure(made).axes[0]
    (triangle,) = (line for line in axes.get_lines() if line.get_marker() == "^")
    assert triangle.get_ydata().tolist() == [TOP]
    assert triangle.get_markerfacecolor() == "white"
    filled = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert sum(len(line.get_xdata()) for line in filled) == 2
    assert marks(axes, "x") == 1
    assert axes.get_title(loc="left") == "2 of 4 layers used (3 have a fit)"


def test_four_metrics_have_a_panel_each(rows):
    fig = metrics_figure(last(rows))
    labels = " ".join(axes.get_ylabel() for axes in fig.axes)
    for name in ("spectral norm", "weighted alpha", "log norm", "alpha"):
        assert name in labels
    assert all(covered_markers(axes) == 0 for axes in fig.axes)


def test_training_has_a_panel_a_type_and_keeps_untrusted_points(rows):
    fig = training_figure(rows)
    shown = {axes.get_title(loc="left") for axes in fig.axes if axes.get_visible()}
    assert {"embedding", "MLP up"} <= shown
    panel = next(axes for axes in fig.axes if axes.get_title(loc="left") == "MLP up")
    assert marks(panel, "o") + marks(panel, "^") == 2 * 3


def test_flow_shows_what_was_not_computed_as_missing(rows):
    fig = flow_figure(rows, "stable_rank")
    shown = fig.axes[0].collections[0].get_array()
    layers = sorted({row["layer"] for row in rows}, key=depth_key)
    assert shown.shape == (len(layers), 3)
    assert shown.mask[layers.index("broken.weight")].all()


def test_esd_scales_the_fit_to_its_share_of_the_spectrum(rows):
    row = next(row for row in rows if row["layer"] == "h.0.mlp.c_fc.weight")
    fig = esd_figure({"run_key": "r", **row})
    name = "" if row["profile"] == "ww-0.7.7" else "_ks2"
    (fit,) = (line for line in fig.axes[1].get_lines() if line.get_label() == "fit")
    share = row[f"num_pl_spikes{name}"] / row["num_evals"]
    assert fit.get_ydata()[0] == pytest.approx(share)
    assert fit.get_xdata()[0] == pytest.approx(row[f"xmin{name}"])


def test_esd_of_a_layer_without_a_fit_says_why(rows):
    row = next(row for row in rows if row["layer"] == "tiny.weight")
    if row.get("eigenvalues") is None:
        with pytest.raises(ValueError, match="no stored eigenvalues"):
            esd_figure(row)
    else:
        assert "no fit" in esd_figure(row).get_suptitle()


def test_depth_runs_from_input_to_output():
    names = [
        "lm_head.weight",
        "h.10.mlp.c_proj.weight",
        "h.2.attn.c_attn.weight[v]",
        "h.2.attn.c_attn.weight[q]",
        "wte.weight",
        "h.2.mlp.c_fc.weight",
    ]
    assert sorted(names, key=depth_key) == [names[4], names[3], names[2], names[5], names[1], names[0]]
    cnn = ["dense2.kernel", "conv2.kernel", "dense1.kernel", "conv1.kernel"]
    assert sorted(cnn, key=depth_key) == ["conv1.kernel", "conv2.kernel", "dense1.kernel", "dense2.kernel"]


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "query"),
        ("encoder.layer.0.attention.output.dense.weight", "attention output"),
        ("encoder.layer.0.output.dense.weight", "MLP down"),
        ("transformer.h.0.mlp.c_proj.weight", "MLP down"),
        ("layer1.0.conv2.weight", "convolution"),
        ("blocks.1.attn.qkv.weight[k]", "key"),
        ("fc.weight", "dense"),
    ],
)
def test_types_from_names(layer, kind):
    assert layer_type(layer, "dense") == kind


def test_no_rows_no_picture():
    with pytest.raises(ValueError, match="no layer"):
        frame([])


def test_frame_takes_tables_and_leaves_them_alone(rows):
    table = pd.DataFrame(rows)
    before = table.copy()
    frame(table)
    pd.testing.assert_frame_equal(table, before)
