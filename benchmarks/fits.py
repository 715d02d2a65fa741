"""How fast a bootstrap refit of L(N, D) is, beside the published way, and whether both end at the same minimum.

The published way (https://arxiv.org/abs/2404.10102) refits each resample with one BFGS run from a known good point and numerical
gradients. Here every resample is a row of one array. Run: python benchmarks/fits.py [--draws 4000] [--published 40]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from scalespec.analysis.laws import chinchilla
from scalespec.analysis.laws.huber import minimise
from scalespec.analysis.laws.law import Array

DELTA = 1e-3
REPOSITORY = Path(__file__).resolve().parents[1]


def points() -> tuple[Array, Array, Array, str]:
    """N, D, loss and their origin: Epoch's 240 points where the data folder exists, else as many from their fit with noise."""
    shared = Path(os.environ.get("SCALESPEC_SHARED", REPOSITORY.parent / "shared"))
    file = shared / "data/scaling/chinchilla_epoch.csv"
    if file.is_file():
        table = pd.read_csv(file)
        loss = table["loss"].to_numpy()
        table = table[loss < np.sort(loss)[-5]]
        n = table["Model Size"].to_numpy()
        return n, table["Training FLOP"].to_numpy() / (6 * n), table["loss"].to_numpy(), "Epoch's 240 Chinchilla points"
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7.8, 10.2, 240), 10 ** rng.uniform(9, 11.5, 240)
    loss = 1.8172 + 477.8 * n**-0.3473 + 2143 * d**-0.3672
    return n, d, loss * np.exp(0.005 * rng.standard_normal(240)), "240 synthetic points with 0.5 % noise"


def published_refit(n: Array, d: Array, loss: Array, start: Array) -> tuple[Array, float]:
    """One BFGS run with numerical gradients on Σ Huber(LSE(a − α ln N, b − β ln D, e) − ln L)."""
    log_n, log_d, log_loss = np.log(n), np.log(d), np.log(loss)

    def objective(p: Array) -> float:
        terms = np.stack([p[0] - p[3] * log_n, p[1] - p[4] * log_d, np.full_like(log_n, p[2])])
        top = terms.max(axis=0)
        size = np.abs(top + np.log(np.exp(terms - top).sum(axis=0)) - log_loss)
        return float(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum())

    found = minimize(objective, start, method="BFGS")
    return found.x, float(found.fun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="resamples refitted in one array")
    parser.add_argument("--published", type=int, default=40, help="resamples refitted the published way")
    options = parser.parse_args()
    n, d, loss, origin = points()
    problem = chinchilla.problem({"n": n, "d": d}, loss)
    began = time.perf_counter()
    tried = minimise(
        problem.model, np.log(loss), np.ones((1, len(n))), problem.starts, DELTA, problem.lower, problem.upper
    )
    starts_s = time.perf_counter() - began
    theta = tried.theta[int(np.argmin(tried.objective))]
    fit = {name: float(value[0]) for name, value in problem.params(theta[None]).items()}

    weights = (
        np.random.default_rng(0).multinomial(len(n), np.full(len(n), 1 / len(n)), size=options.draws).astype(float)
    )
    began = time.perf_counter()
    refits = minimise(
        problem.model,
        np.log(loss),
        weights,
        np.tile(theta, (options.draws, 1)),
        DELTA,
        problem.lower,
        problem.upper,
    )
    ours_s = time.perf_counter() - began

    start = np.array([np.log(fit["A"]), np.log(fit["B"]), np.log(fit["E"]), fit["alpha"], fit["beta"]])
    began = time.perf_counter()
    excess = []
    for draw in range(options.published):
        rows = np.repeat(np.arange(len(n)), weights[draw].astype(int))
        excess.append(published_refit(n[rows], d[rows], loss[rows], start)[1] / refits.objective[draw] - 1)
    published_s = (time.perf_counter() - began) / options.published
    draws = problem.params(refits.theta)
    result = {
        "data": origin,
        "objective": float(tried.objective.min()),
        "fit": fit,
        "starts": len(tried.objective),
        "starts_s": round(starts_s, 3),
        "draws": options.draws,
        "draws_s": round(ours_s, 3),
        "ms_per_refit": round(1e3 * ours_s / options.draws, 3),
        "published_ms_per_refit": round(1e3 * published_s, 2),
        "ratio": round(published_s / (ours_s / options.draws), 1),
        "converged": float(refits.converged.mean()),
        "published_excess_objective": {"median": float(np.median(excess)), "smallest": float(np.min(excess))},
        "intervals_95": {
            k: np.quantile(draws[k], [0.025, 0.975]).round(4).tolist() for k in ("alpha", "beta", "E", "A", "B")
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
