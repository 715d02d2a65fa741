"""The choice a study invites, on tables and on the per-example losses of real run folders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from trained import trained

from scalespec.analysis import tables
from scalespec.orchestrator.report.selection import choose, correct, read_examples
from scalespec.orchestrator.store import run_tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("study"), grid={"width": [4, 8, 12], "seed": [0, 1]})


@pytest.fixture(scope="module")
def runs(finished):
    return tables.to_pandas(run_tables.runs_table(finished.store, finished.specs, {}, None))


def test_the_candidates_are_the_widths_at_the_most_data(runs):
    found = choose(runs)
    assert set(found.runs) == {"width 4", "width 8", "width 12"}
    most = runs[runs["samples"] == runs["samples"].max()]
    assert {key for keys in found.runs.values() for key in keys} == set(most["run_key"])
    first = most[most["seed"] == 0].set_index("width")["val_loss_select"]
    assert found.selection.winner == f"width {first.idxmin()}"


def test_a_further_axis_makes_more_candidates(runs):
    dropped = runs.assign(dropout=0.2, run_key="d-" + runs["run_key"])
    columns = list(runs.columns)
    columns.insert(columns.index("seed") + 1, "dropout")
    both = pd.concat([runs.assign(dropout=0.0), dropped])[columns]
    assert len(choose(both).runs) == 6
    assert "width 8, dropout 0.2" in choose(both).runs


def test_the_winner_is_corrected_by_its_examples(finished, runs):
    found = choose(runs)
    examples = read_examples(finished.store, found)
    assert set(examples) == {key for keys in found.runs.values() for key in keys}
    fixed = correct(found, examples)
    means = {name: np.mean([examples[key].mean() for key in keys]) for name, keys in found.runs.items()}
    assert fixed.apparent == pytest.approx(min(means.values()))
    assert fixed.lo <= fixed.corrected <= fixed.hi


def test_missing_examples_leave_the_correction_out(finished, runs):
    found = choose(runs)
    examples = read_examples(finished.store, found)
    assert correct(found, {}) is None
    assert correct(None, examples) is None
    assert read_examples(finished.store, None) == {}
    cut = {key: losses[: len(losses) - (at == 0)] for at, (key, losses) in enumerate(examples.items())}
    assert correct(found, cut) is None


def test_without_two_configurations_there_is_no_choice(runs):
    assert choose(runs[runs["width"] == 8]) is None
    assert choose(runs.assign(status="failed")) is None
