"""Tables that the tests of laws share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from surfaces import grid_runs, read


@pytest.fixture(scope="session")
def epoch(shared: Path) -> pd.DataFrame:
    """All 245 points read from Chinchilla's figure: n, d, c, loss."""
    table = read(shared, "chinchilla_epoch.csv")
    n, c = table["Model Size"], table["Training FLOP"]
    return pd.DataFrame({"n": n, "d": c / (6 * n), "c": c, "loss": table["loss"]})


@pytest.fixture(scope="session")
def epoch_240(epoch: pd.DataFrame) -> pd.DataFrame:
    """Without the five highest losses, the rule of the published refit."""
    return epoch[epoch["loss"] < np.sort(epoch["loss"])[-5]].reset_index(drop=True)


@pytest.fixture
def runs() -> pd.DataFrame:
    return grid_runs()
