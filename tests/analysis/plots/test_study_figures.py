"""Figures of a study's runs: thinned but true, and nothing hidden."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from scalespec.analysis.laws import study_laws
from scalespec.analysis.plots.study import (
    ALL_POINTS,
    POINTS,
    SINGLE,
    Look,
    accuracy_figure,
    curves_figure,
    curves_of,
    fraction,
    thin,
)
from scalespec.analysis.plots.style import EXCLUDED


def runs_of(widths=(8, 16, 32), fractions=(1.0, 0.5), seeds=(0, 1), **more):
    cells = [(w, f, s) for w in widths for f in fractions for s in seeds]
    frame = pd.DataFrame(cells, columns=["width", "data_fraction", "seed"])
    n, d = 10.0 * frame["width"] ** 2, 1e5 * frame["data_fraction"]
    key = [f"w{w}-f{f}-s{s}" for w, f, s in cells]
    loss = 1 + 10 * n**-0.3 + 20 * d**-0.3 + 0.01 * frame["seed"]
    return frame.assign(
        batch_size=8, run_key=key, family_key=[f"w{w}-s{s}" for w, _, s in cells], params_matmul=n, samples=d, flops_train=6 * n * d,
        val_loss=loss, val_accuracy=np.exp(-loss / 2), status="done", error=None,
    ).assign(**more)  # fmt: skip


def curves_for(runs, points=10):
    rows = []
    for run in runs.itertuples():
        for share in np.linspace(0, 1, points):
            value = run.val_loss + (5 - run.val_loss) * (1 - share)
            rows.append(
                (run.run_key, int(100 * share), share * run.samples, share * run.flops_train, "val_loss", value)
            )
            rows.append((run.run_key, int(100 * share), share * run.samples, share * run.flops_train, "lr", 0.1))
    return pd.DataFrame(rows, columns=["run_key", "step", "samples", "flops", "metric", "value"])


def markers(axes, shape=None, color=None):
    return [
        line for line in axes.get_lines()
        if len(line.get_xdata()) and (shape is None or line.get_marker() == shape) and (color is None or to_hex(line.get_markeredgecolor()) == color)
    ]  # fmt: skip


@given(st.integers(1, 2000), st.integers(2, 400))
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_the_ends_the_order_and_the_limit(size, most):
    frame = pd.DataFrame({"flops_train": np.geomspace(1, 1e6, size), "value": np.arange(size)})
    kept = thin(frame, most)
    assert len(kept) <= most + 1
    assert kept["value"].is_monotonic_increasing
    assert {0, size - 1} <= set(kept["value"])
    assert set(kept["value"]) <= set(frame["value"])
    if size <= most:
        assert len(kept) == size


def test_a_curve_is_a_run_and_step_0_has_no_place_on_a_log_axis():
    runs = runs_of()
    points = curves_of(runs, curves_for(runs))
    assert set(points["curve"]) == set(runs["run_key"])
    assert (points["flops_train"] > 0).all()
    assert points.groupby("curve").size().eq(9).all()
    last = points.groupby("curve")["value"].last()
    np.testing.assert_allclose(last[runs["run_key"]], runs["val_loss"])


def test_many_runs_are_averaged_over_seeds_at_equal_compute_only():
    runs = runs_of(widths=(8, 16), fractions=(1.0, 0.5), seeds=range(20))
    assert len(runs) > SINGLE
    runs.loc[3, "status"] = "diverged"
    curves = curves_for(runs)
    late = runs["run_key"].iloc[60]
    curves.loc[curves["run_key"] == late, "flops"] *= 1.01
    points = curves_of(runs, curves)
    seeds = points.groupby("curve")["seeds"].first()
    assert seeds[runs["run_key"].iloc[3]] == 1
    assert sorted(seeds.unique()) == [1, 19, 20]
    apart = runs[(runs["width"] == runs["width"].iloc[60]) & (runs["data_fraction"] == runs["data_fraction"].iloc[60])]
    assert set(apart["run_key"]) <= set(seeds.index[seeds == 1])
    averaged = points[points["seeds"] == 20].groupby("curve")["value"].last()
    cell = runs[runs["run_key"] == averaged.index[0]].iloc[0]
    mean = runs[(runs["width"] == cell["width"]) & (runs["data_fraction"] == cell["data_fraction"])]["val_loss"].mean()
    assert averaged.iloc[0] == pytest.approx(mean)


def test_points_stay_below_the_limits():
    runs = runs_of(widths=range(8, 48, 4), fractions=(1.0, 0.5, 0.25), seeds=(0, 1))
    points = curves_of(runs, curves_for(runs, points=900))
    assert points.groupby("curve").size().max() <= POINTS + 1
    assert len(points) <= 1.05 * ALL_POINTS


def test_colour_is_size_and_shape_is_fraction_on_both_figures():
    runs = runs_of()
    look = Look.of(runs)
    light, dark = (np.mean(look.color(size)[:3]) for size in (min(look.sizes), max(look.sizes)))
    assert light > dark
    assert len({look.marker(f) for f in look.fractions}) == 2
    for fig in (curves_figure(runs, curves_for(runs)), accuracy_figure(runs)):
        for size in look.sizes:
            assert any(to_hex(line.get_color()) == to_hex(look.color(size)) for line in markers(fig.axes[0]))


def test_what_did_not_finish_is_hollow_and_off_the_scale_stands_on_the_frame():
    runs = runs_of()
    curves = curves_for(runs)
    runs.loc[0, ["status", "val_loss"]] = ["diverged", np.nan]
    runs.loc[1, ["status", "val_loss"]] = ["failed", np.nan]
    curves.loc[(curves["run_key"] == runs["run_key"][0]) & (curves["metric"] == "val_loss"), "value"] *= 40
    curves = curves[curves["run_key"] != runs["run_key"][1]]
    axes = curves_figure(runs, curves).axes[0]
    hollow = markers(axes, color=EXCLUDED)
    assert [line.get_marker() for line in hollow] == ["^", "^"]
    top = axes.get_ylim()[1]
    assert all(line.get_ydata()[0] == top for line in hollow)
    left, right = axes.get_xlim()
    assert all(left <= line.get_xdata()[0] <= right for line in hollow)


def test_the_frontier_is_solid_where_it_was_read_and_dashed_beyond():
    widths = [round(8 * 2 ** (i / 2)) for i in range(7)]
    runs = runs_of(widths=widths, fractions=(1.0, 0.5, 0.25, 0.125), study="s")
    laws = study_laws(runs, resamples=0)
    found = next(law for law in laws if law.form == "frontier")
    assert found.params
    axes = curves_figure(runs, curves_for(runs), laws).axes[0]
    solid = next(line for line in axes.get_lines() if line.get_label() == "frontier")
    points = found.diagnostics["points"]["c"]
    assert (solid.get_xdata()[0], solid.get_xdata()[-1]) == pytest.approx((min(points), max(points)))
    middle = solid.get_xdata()[50]
    assert solid.get_ydata()[50] == pytest.approx(found["E"] + found["K"] * middle ** -found["gamma"])


def test_without_a_frontier_the_one_that_the_law_implies_is_drawn_as_such():
    runs = runs_of(widths=(8, 32, 128), fractions=(1.0, 0.5, 0.25))
    laws = study_laws(runs, resamples=0)
    axes = curves_figure(runs, curves_for(runs), laws).axes[0]
    implied = next(line for line in axes.get_lines() if "implies" in str(line.get_label()))
    assert implied.is_dashed()


def test_what_cannot_be_drawn_says_why():
    runs = runs_of()
    with pytest.raises(ValueError, match="no run has a result"):
        curves_figure(runs[:0], curves_for(runs))
    with pytest.raises(ValueError, match="validation loss after step 0"):
        curves_figure(runs, curves_for(runs)[:0])
    with pytest.raises(ValueError, match="accuracy"):
        accuracy_figure(runs.assign(val_accuracy=np.nan))


@pytest.mark.parametrize(("value", "said"), [(1.0, "1"), (0.125, "1/8"), (1 / 3, "1/3"), (0.3, "3/10")])
def test_fractions_are_written_as_such(value, said):
    assert fraction(value) == said
