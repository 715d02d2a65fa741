import numpy as np
import pandas as pd
import pytest
from surfaces import grid_runs

from scalespec.analysis.laws import Table, backtests, fit_isoflop, rolling_origin, study_laws
from scalespec.analysis.laws.study import as_runs
from scalespec.analysis.plots.axes import covered_markers
from scalespec.analysis.plots.laws import (
    Labels,
    backtest_figure,
    coefficient_drift_figure,
    frontier_figure,
    isoflop_figure,
    surface_figure,
)
from scalespec.analysis.plots.style import to_svg


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    table = grid_runs()
    table.loc[3, ["status", "error", "val_loss"]] = ["diverged", "non_finite: loss is NaN", np.nan]
    return table


@pytest.fixture(scope="module")
def laws(runs):
    return study_laws(runs, resamples=100)


@pytest.fixture(scope="module")
def tests(runs):
    good = runs[runs["status"] == "done"]
    table = Table.of(good["params_matmul"], good["samples"], good["flops_train"], good["val_loss"], good["family_key"])
    return backtests(table, resamples=60), rolling_origin(table, resamples=60)


@pytest.mark.parametrize("draw", [frontier_figure, surface_figure, isoflop_figure])
def test_no_text_hides_a_run(draw, runs, laws):
    assert sum(covered_markers(axes) for axes in draw(runs, laws).axes) == 0


def test_equal_tables_are_equal_svg_with_text_that_stays_text(runs, laws):
    svg = to_svg(isoflop_figure(runs, laws))
    assert svg == to_svg(isoflop_figure(runs, laws))
    assert "<text" in svg


def test_backtest_figures_hide_nothing(tests, laws):
    for figure in (backtest_figure(tests[0]), coefficient_drift_figure(tests[1], laws[0])):
        assert sum(covered_markers(axes) for axes in figure.axes) == 0


def test_captions_say_what_was_resampled_and_what_is_missing(runs, laws):
    said = frontier_figure(runs, laws)._supxlabel.get_text().replace("\n", " ")
    assert "89 runs, 3 seeds." in said
    assert "1 runs left out" in said
    assert "18 families" in said
    assert "converged" in said
    single = runs[runs["seed"] == 0]
    assert "1 seed: no noise estimate" in surface_figure(single, laws)._supxlabel.get_text()


def test_a_diverged_run_stays_visible(runs, laws):
    hollow = [line for line in frontier_figure(runs, laws).axes[0].get_lines() if line.get_marker() == "^" and line.get_markerfacecolor() == "none"]  # fmt: skip
    assert [len(line.get_xdata()) for line in hollow] == [1]
    assert hollow[0].get_xdata()[0] == runs.loc[3, "flops_train"]


def test_every_run_is_drawn(runs, laws):
    axes = surface_figure(runs, laws).axes
    strip = axes[2]
    drawn = sum(len(line.get_xdata()) for line in strip.get_lines() if line.get_marker() == "o")
    assert drawn == 89


def test_the_fit_is_dashed_outside_the_data(runs, laws):
    styles = {line.get_linestyle() for line in frontier_figure(runs, laws).axes[0].get_lines()}
    assert {"-", "--"} <= styles


def test_laws_read_back_without_draws_are_drawn_without_bands(runs, laws):
    from scalespec.analysis.laws import Law

    read = [Law.from_json(law.to_json()) for law in laws]
    figure = frontier_figure(runs, read)
    assert not any("Poly" in type(item).__name__ for item in figure.axes[0].collections)


def test_an_edge_optimum_is_an_open_triangle():
    n = np.tile(np.geomspace(1e7, 1e9, 9), 4)
    c = np.repeat(np.geomspace(1e17, 1e20, 4), 9)
    loss = 2 + 0.01 * (np.log(n) - np.where(c > 5e19, 15.0, np.log(1e8))) ** 2
    law, _ = fit_isoflop(n, c, loss, resamples=60)
    axes = isoflop_figure(as_runs(n, c / 6 / n, c, loss), [law], labels=Labels(n="N, all parameters")).axes
    assert axes[0].get_xlabel() == "N, all parameters"
    assert sum(line.get_marker() == "v" for line in axes[0].get_lines()) == 1
    assert sum(line.get_marker() == "*" for line in axes[0].get_lines()) == 3


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 1), (4, 4, 2)])
def test_small_studies_have_figures_that_say_what_is_missing(size):
    table = grid_runs(*size)
    few = study_laws(table, resamples=60)
    for draw in (frontier_figure, surface_figure, isoflop_figure):
        assert to_svg(draw(table, few))


def test_no_backtest_is_said():
    assert "too few runs" in backtest_figure([]).axes[0].texts[0].get_text()
    assert to_svg(coefficient_drift_figure([]))
