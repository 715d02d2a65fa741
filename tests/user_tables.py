"""A table as a user might bring it, and what is said of one that cannot be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalespec.orchestrator.errors import InputError

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""The published law (https://arxiv.org/abs/2203.15556, eq. 10)."""


def surface() -> pd.DataFrame:
    """The law without noise, on a grid of sizes and data."""
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 1e11, 6)))
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    return pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "loss": loss, "seed": np.arange(len(n)) % 2})


def complaint(function, *arguments) -> str:
    """The one line of an InputError."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
