from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.plots.selection import MOST, selection_figure
from scalespec.analysis.plots.style import to_svg
from scalespec.analysis.selection import expected_best, select


def runs(configurations: int, seeds: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"name": f"lr {c}", "seed": s, "val_loss_select": 2 + rng.random(), "val_loss_report": 2 + rng.random()}
            for c in range(configurations)
            for s in range(seeds)
        ]
    )


@pytest.mark.parametrize("configurations", [2, 7, MOST + 5])
def test_every_configuration_has_its_row_and_the_best_of_n_ends_at_the_best(configurations):
    found = select(runs(configurations), "name")
    fig = selection_figure(found)
    left, right = fig.axes
    shown = min(configurations, MOST)
    assert [label.get_text() for label in left.get_yticklabels()] == list(found.scores.index[:shown])
    selected, reported = (line.get_xdata() for line in left.lines[:2])
    assert list(selected) == list(found.scores["selected"][:shown])
    assert list(selected) == sorted(selected)
    assert list(reported) == list(found.scores["reported"][:shown])
    assert list(right.lines[0].get_ydata()) == pytest.approx(list(expected_best(found.scores["reported"])))
    said = to_svg(fig)
    assert ("5 worse ones are not drawn" in said) is (configurations > MOST)
    assert "seed 1" in said
