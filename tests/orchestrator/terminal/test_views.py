"""What is printed is what was found."""

from __future__ import annotations

import numpy as np
import pytest
from user_tables import TRUTH, surface

from scalespec.analysis.laws import fit_chinchilla, fit_power
from scalespec.orchestrator.terminal.views import believed, best_sizes


def row(trusted, why=None, status="ok"):
    return {"trusted": trusted, "why": why, "status": status}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(True)], "1 of 1 exponents can be trusted"),
        (
            [row(True), row(False, "traps; short tail"), row(False, "traps"), row(None, status="too_small")],
            "1 of 4 exponents can be trusted; against the others: traps (2), short tail (1), too small (1)",
        ),
        (
            [row(None, "not computed: traps")],
            "0 of 1 exponents can be trusted; against the others: not computed: traps (1)",
        ),
    ],
)
def test_how_many_exponents_can_be_believed(rows, said):
    assert believed(rows) == said


def test_the_best_sizes_are_those_of_the_published_formula():
    frame = surface()
    law = fit_chinchilla(frame["N"], frame["D"], frame["loss"], resamples=0, influence=False)
    largest, beyond = best_sizes(law)
    budget = frame["C"].max()
    total = TRUTH["alpha"] + TRUTH["beta"]
    scale = (TRUTH["alpha"] * TRUTH["A"] / (TRUTH["beta"] * TRUTH["B"])) ** (1 / total)
    for line, c in ((largest, budget), (beyond, 10 * budget)):
        n = scale * (c / 6) ** (TRUTH["beta"] / total)  # eq. 4 of https://arxiv.org/abs/2203.15556
        found = line.split("N = ")[1].split(",")[0]
        assert float(found.rstrip("B")) * 1e9 == pytest.approx(n, rel=0.01)
    assert "ten times that" in beyond


def test_other_forms_have_no_best_size():
    assert best_sizes(fit_power(np.geomspace(1, 100, 8), np.geomspace(5, 2, 8), resamples=0)) == []
