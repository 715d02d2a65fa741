import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    """`benchmarks/coverage.py`, which runs 200 of these studies."""
    file = Path(__file__).resolve().parents[3] / "benchmarks/coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_intervals_cover_the_truth_in_twenty_studies(benchmark):
    """200 studies give .95, .94 and .93; with 20, at least 17 must hold, and wide intervals would not be a success."""
    found = benchmark.measure(studies=20, resamples=400)
    assert found["a"]["coverage"] >= 0.85
    assert found["frontier exponent"]["coverage"] >= 0.85
    assert found["n_opt exponent"]["coverage"] >= 0.8
    assert found["a"]["median_width"] < 0.2
    assert found["frontier exponent"]["median_width"] < 0.25
    assert all(entry["without_interval"] == 0 for entry in found.values())


def test_half_of_the_variance_is_shared_by_a_family(benchmark):
    import numpy as np

    residuals = []
    for seed in range(60):
        table = benchmark.study(seed)
        clean = benchmark.chinchilla_loss(benchmark.TRUTH, table.n, table.d)
        residuals.append(np.log(table.loss / clean).reshape(18, 5))
    residuals = np.concatenate(residuals)
    assert residuals.std() == pytest.approx(benchmark.NOISE, rel=0.05)
    pairs = np.mean([residuals[:, i] * residuals[:, j] for i in range(5) for j in range(i)])
    assert pairs / residuals.var() == pytest.approx(0.5, abs=0.07)
