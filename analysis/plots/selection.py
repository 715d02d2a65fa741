"""Choosing among configurations: how each fares where it was chosen and where it was not, and the best of n on average."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scalespec.analysis.plots.axes import caption
from scalespec.analysis.plots.style import DARK, EXCLUDED, FULL, GREY, figure
from scalespec.analysis.selection import Selection, expected_best

MOST = 24
"""Configurations that get a row of their own; of more the best are shown."""


def selection_figure(found: Selection, *, loss_label: str = "validation loss (nats)") -> Figure:
    """Left: each configuration, the best first, where it was chosen (○) and in the report (●). Right: the expected best of n."""
    shown = found.scores.iloc[:MOST]
    with figure(FULL, max(2.4, 0.9 + 0.16 * len(shown)), columns=2) as (fig, (left, right)):
        rows = np.arange(len(shown))
        selected, reported = (shown[name].to_numpy(dtype=np.float64) for name in ("selected", "reported"))
        left.hlines(rows, np.minimum(selected, reported), np.maximum(selected, reported), color=GREY, linewidth=0.8)
        left.plot(selected, rows, "o", markerfacecolor="white", markeredgecolor=DARK, label="where it was chosen")
        left.plot(reported, rows, "o", color=DARK, markeredgewidth=0, label="in the report")
        best = int(reported.argmin())
        left.plot(reported[best], best, "*", color=EXCLUDED, markersize=8, label="best in the report")
        left.set_yticks(rows, [str(name) for name in shown.index])
        left.invert_yaxis()
        left.set_xlabel(loss_label)
        left.legend(loc="best")
        every = found.scores["reported"].to_numpy(dtype=np.float64)
        trials = np.arange(1, len(every) + 1)
        right.plot(trials, expected_best(every), "-o", color=DARK, markersize=3)
        right.set_xlabel("configurations tried, at random")
        right.set_ylabel("expected best, in the report")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        hidden = f" {len(found.scores) - MOST} worse ones are not drawn." if len(found.scores) > MOST else ""
        caption(fig, f"Chosen on {found.selected_on}; reported on {found.reported_on}.{hidden}")
    return fig
