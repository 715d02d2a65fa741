"""Do the intervals cover? Synthetic studies with a known law, fitted as a study is, count how often 95 % intervals hold it.

Each study has 6 widths × 5 data fractions × 3 seeds and 1 % noise on the loss, half of whose variance is shared by a family
(a width and a seed): its members branch from one trunk. Run: python benchmarks/coverage.py [--studies 200] [--resamples 400]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from scalespec.analysis.laws import chinchilla_loss, fit_chinchilla, fit_frontier
from scalespec.analysis.laws.law import Array, Param

TRUTH = {"E": 1.8172, "A": 477.8, "B": 2143.0, "alpha": 0.3473, "beta": 0.3672}
"""Epoch's refit of Chinchilla, https://arxiv.org/abs/2404.10102."""
A = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
GAMMA = TRUTH["alpha"] * TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
"""The frontier of that surface is exactly E + K·C^−γ with γ = αβ/(α+β)."""
WIDTHS, FRACTIONS, SEEDS, NOISE = 6, 5, 3, 0.01
SMALLEST_N, LARGEST_D = 2e7, 6.4e9  # N doubles with a width times √2; the optimum lies inside the grid


@dataclass(frozen=True)
class Study:
    """The table of one synthetic study [points]."""

    n: Array
    d: Array
    c: Array
    loss: Array
    families: list[str]


def study(seed: int) -> Study:
    """Study number `seed`."""
    rng = np.random.default_rng(seed)
    grid = [(w, s, f) for w in range(WIDTHS) for s in range(SEEDS) for f in range(FRACTIONS)]
    n = np.array([SMALLEST_N * 2**w for w, _, _ in grid])
    d = np.array([LARGEST_D / 2**f for _, _, f in grid])
    families = [f"{w}-{s}" for w, s, _ in grid]
    shared = dict(zip(sorted(set(families)), rng.standard_normal(WIDTHS * SEEDS), strict=True))
    own = rng.standard_normal(len(grid))
    noise = NOISE * np.sqrt(0.5) * (np.array([shared[f] for f in families]) + own)
    return Study(n, d, 6 * n * d, chinchilla_loss(TRUTH, n, d) * np.exp(noise), families)


def intervals(seed: int, resamples: int) -> dict[str, Param]:
    """The intervals of a = β/(α+β), of the frontier's exponent and of N_opt's exponent in study number `seed`."""
    table = study(seed)
    options: dict[str, Any] = {"families": table.families, "resamples": resamples, "seed": seed}
    law = fit_chinchilla(table.n, table.d, table.loss, influence=False, **options)
    frontier, size = fit_frontier(table.n, table.c, table.loss, **options)
    return {
        "a": law.params["a"],
        "frontier exponent": frontier.params.get("gamma", Param(float("nan"))),
        "n_opt exponent": size.params.get("a", Param(float("nan"))),
    }


def covers(interval: Param, truth: float) -> bool:
    """Whether the interval holds the truth; a missing interval does not."""
    return interval.lo is not None and interval.hi is not None and interval.lo <= truth <= interval.hi


def measure(studies: int, resamples: int) -> dict[str, dict[str, float]]:
    """Coverage, median estimate and median width of each interval over studies 0 … `studies` − 1."""
    truth = {"a": A, "frontier exponent": GAMMA, "n_opt exponent": A}
    found: dict[str, list[Param]] = {name: [] for name in truth}
    for seed in range(studies):
        for name, interval in intervals(seed, resamples).items():
            found[name].append(interval)
    out = {}
    for name, params in found.items():
        widths = [p.hi - p.lo for p in params if p.lo is not None and p.hi is not None]
        out[name] = {
            "truth": truth[name],
            "coverage": float(np.mean([covers(p, truth[name]) for p in params])),
            "median_estimate": float(np.nanmedian([p.value for p in params])),
            "median_width": float(np.median(widths)) if widths else float("nan"),
            "without_interval": sum(p.lo is None for p in params),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=400)
    options = parser.parse_args()
    began = time.perf_counter()
    result = measure(options.studies, options.resamples)
    print(
        json.dumps(
            {**vars(options), "seconds": round(time.perf_counter() - began, 1), "level": 0.95, **result}, indent=1
        )
    )


if __name__ == "__main__":
    main()
