"""Can this alpha be believed? Every check is a column, and the verdict says which of them failed.

A trained layer's exponent means something only if its tail is large, fits better than random weights of its shape do, does not
hang on one choice of xmin, and stands out of the layer's own shuffle. Thresholds are starting values from
WeightWatcher #307 and from what Gaussian matrices of the same shape give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from scalespec.analysis.spectral.many_fits import fits
from scalespec.analysis.spectral.nulls import Null, null
from scalespec.analysis.spectral.power_law import Fit, Floats, Rule, near_optimal

LEVEL, RESAMPLES = 0.9, 100
MIN_EVALS, MIN_TAIL, MAX_SPREAD, MAX_ALPHA = 128, 20, 1.0, 8.0
MAX_WIDTH = 2.5
"""Of the interval. At 2 a fifth of matrices with a planted exponent of 2.5 and 50 tail values in 384 would fail, at 2.5 a tenth;
Gaussian matrices have ten and more."""

NULL_TAIL = 0.05
WORSE = 0.1
"""Level of the likelihood-ratio test at which the exponential counts as the better tail."""

UNFIT = {"trusted": False, "why": "too small"}
"""Below MIN_EVALS eigenvalues no exponent is believed; alpha_hill stands against its null instead."""
GRID, PROMINENCE, POINTS = 512, 0.1, 6
"""Points of the density whose modes are counted; a bump is a mode where it stands out of its surroundings by a tenth of the
highest, and by what six eigenvalues close together make. Of 10,000 true power-law tails of 20 to
200 points one had more."""


@dataclass(frozen=True)
class Subject:
    """What a verdict is about."""

    values: Floats
    """All eigenvalues, ascending."""
    fitted: Floats
    """Those the fit saw."""
    shape: tuple[int, int, int]
    """N, M and the number of matrices."""
    fit: Fit
    rule: Rule
    native: bool
    cut: float
    """The fit's lower cut in units of the mean eigenvalue."""


def judge(subject: Subject, row: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The columns of the verdict, few for a small layer; `row` holds the layer's other columns, of which the randomised ones may be absent."""
    table = null(*subject.shape, native=subject.native, cut=subject.cut)
    if len(subject.values) < MIN_EVALS:
        return compare(table, row) | UNFIT
    found = compare(table, row) | {
        "alpha_null_lo": table.quantile("alpha", NULL_TAIL),
        "alpha_null_hi": table.quantile("alpha", 1 - NULL_TAIL),
        "alpha_z": table.z("alpha", subject.fit.alpha),
        "D_null": table.quantile("D", NULL_TAIL),
        "modes": modes(subject.fitted),
        "tail_modes": modes(subject.fitted[-subject.fit.tail :]),
    }
    found |= tail_tests(subject, seed)
    return found | verdict(subject, {**row, **found})


def compare(table: Null, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that need no fit, against their null."""
    alpha_hill = row.get("alpha_hill")
    return {
        "alpha_hill_null_lo": table.quantile("hill", NULL_TAIL),
        "alpha_hill_null_hi": table.quantile("hill", 1 - NULL_TAIL),
        "alpha_hill_z": None if alpha_hill is None else table.z("hill", alpha_hill),
        "stable_rank_z": table.z("stable_rank", row["stable_rank"]),
        "rand_distance_null": table.quantile("distance", 1 - NULL_TAIL),
    }


def verdict(subject: Subject, row: Mapping[str, Any]) -> dict[str, Any]:
    """`trusted` and `why`. False: a check failed; None: none failed, but one was not computed."""
    checks: dict[str, bool | None] = {
        "short tail": subject.fit.tail >= MIN_TAIL,
        "fits no better than random": row["D_null"] >= subject.fit.D,
        "depends on xmin": row["alpha_spread"] <= MAX_SPREAD,
        "wide interval": row["alpha_hi"] - row["alpha_lo"] <= MAX_WIDTH,
        "alpha above 8": subject.fit.alpha <= MAX_ALPHA,
        "exponential tail": not (row["lr_exponential"] < 0 and row["p_exponential"] < WORSE),
        "several modes in the tail": row["tail_modes"] == 1,
        "rank loss": row["rank_loss"] == 0,
        "traps": None if row.get("num_traps") is None else row["num_traps"] == 0,
        "like its shuffle": None
        if row.get("rand_distance") is None
        else row["rand_distance"] > row["rand_distance_null"],
    }
    if row.get("tail_mean_vec_entropy") is not None:
        checks["tail vectors not localised"] = row["tail_mean_vec_entropy"] < row["bulk_mean_vec_entropy"]
    failed = [name for name, passed in checks.items() if passed is not None and not passed]
    open_ = [name for name, passed in checks.items() if passed is None]
    why = failed + [f"not computed: {name}" for name in open_]
    return {"trusted": False if failed else None if open_ else True, "why": "; ".join(why) or None}


def tail_tests(subject: Subject, seed: int) -> dict[str, Any]:
    """Interval and stability of the exponent, and the tail against other laws."""
    lo, hi = interval(subject.fitted, subject.rule, seed)
    near = near_optimal(subject.fitted, subject.rule, subject.fit)
    tail = subject.fitted[-subject.fit.tail :]
    lr_exponential, p_exponential = vuong(tail, subject.fit, exponential_log_density(tail))
    lr_lognormal, p_lognormal = vuong(tail, subject.fit, lognormal_log_density(tail, subject.fit))
    return {
        "alpha_lo": lo,
        "alpha_hi": hi,
        "alpha_spread": float(np.ptp(near)) if len(near) else np.nan,
        "lr_exponential": lr_exponential,
        "p_exponential": p_exponential,
        "lr_lognormal": lr_lognormal,
        "p_lognormal": p_lognormal,
    }


def interval(
    values: Floats, rule: Rule, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of alpha, xmin chosen anew in every resample.

    Eigenvalues repel each other and resampling makes ties, so this is no textbook bootstrap; measured, its median width was
    0.8 to 2.0 times the 5–95 % range of alpha over independent draws (planted tails, Student-t matrices, products of Gaussian
    ones), while sigma, which takes xmin as known, was about half of it.
    """
    rng = np.random.default_rng([seed, 1])
    rule = replace(rule, distinct=True)
    n = len(values)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    samples = np.repeat(np.tile(values, resamples), counts.ravel()).reshape(resamples, n)
    alphas = fits(samples, rule).alpha
    alphas = alphas[np.isfinite(alphas)]
    if not len(alphas):
        return np.nan, np.nan
    lo, hi = np.quantile(alphas, ((1 - level) / 2, (1 + level) / 2))
    return float(lo), float(hi)


def vuong(tail: Floats, fit: Fit, alternative: Floats) -> tuple[float, float]:
    """(log-likelihood ratio, two-sided p) of the power law over an alternative given by its log density on the tail.

    Positive favours the power law (Vuong 1989, as in Clauset et al., https://arxiv.org/abs/0706.1062, appendix C).
    """
    xmin = tail[0]
    power = np.log((fit.alpha - 1) / xmin) - fit.alpha * np.log(tail / xmin)
    difference = power - alternative
    ratio, spread = float(difference.sum()), float(difference.std())
    if not spread * len(tail) ** 0.5 > 1e-12 * max(1.0, abs(ratio)):
        return ratio, 1.0
    return ratio, float(special.erfc(abs(ratio) / (spread * np.sqrt(2 * len(tail)))))


def exponential_log_density(tail: Floats) -> Floats:
    """Log density of the maximum likelihood exponential on x ≥ min(tail)."""
    rate = 1 / max(float(tail.mean() - tail[0]), np.finfo(float).tiny)
    return np.log(rate) - rate * (tail - tail[0])  # type: ignore[no-any-return]


def lognormal_log_density(tail: Floats, fit: Fit) -> Floats:
    """Log density of the maximum likelihood lognormal, truncated to x ≥ min(tail).

    With y = ln(x/xmin) this is a normal truncated to y ≥ 0, an exponential family in (y, y²): the estimate matches both
    moments, and their ratio E[y²]/E[y]² fixes the truncation point τ = −μ/σ alone. At a ratio of 2 or more the best
    lognormal is the power law itself.
    """
    y = np.log(tail / tail[0])
    first, second = float(y.mean()), float(np.mean(y * y))
    wanted = second / first**2

    def ratio(tau: float) -> float:
        gap = _hazard(tau) - tau
        return float((1 - tau * gap) / gap**2)

    far, near = 1e2, -1e3
    if wanted >= ratio(far):
        return np.log((fit.alpha - 1) / tail[0]) - fit.alpha * y  # type: ignore[no-any-return]
    tau = optimize.brentq(lambda t: ratio(t) - wanted, near, far) if wanted > ratio(near) else near
    sigma = first / (_hazard(tau) - tau)
    standard = y / sigma + tau
    return -0.5 * standard**2 - np.log(sigma * np.sqrt(2 * np.pi)) - special.log_ndtr(-tau) - np.log(tail)  # type: ignore[no-any-return]


def _hazard(tau: float) -> float:
    """φ(τ)/(1 − Φ(τ)) of the standard normal, without cancellation for large τ."""
    return float(np.sqrt(2 / np.pi) / special.erfcx(tau / np.sqrt(2)))


def modes(values: Floats) -> int:
    """Modes of the density of log λ: a Gaussian kernel of Silverman's width, small bumps not counted.

    Of the whole spectrum a second mode may be a tail that has left the bulk, which is no fault; of the tail it is one, since
    there the density of log λ should only fall.
    """
    logs = np.log(values)
    quartiles = np.quantile(logs, (0.25, 0.75))
    spread = min(float(logs.std()), float(np.diff(quartiles)[0]) / 1.349)
    if not spread > 0:
        return 1
    width = 0.9 * spread * len(logs) ** -0.2
    edges = np.linspace(logs[0] - 3 * width, logs[-1] + 3 * width, GRID + 1)
    counts = np.histogram(logs, edges)[0]
    reach = int(np.ceil(4 * width / (edges[1] - edges[0])))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * (edges[1] - edges[0]) / width) ** 2)
    density = (
        np.convolve(counts, kernel, mode="same") if len(kernel) <= GRID else np.convolve(counts, kernel)[reach:-reach]
    )
    return max(1, prominent_peaks(density, max(PROMINENCE * density.max(), POINTS)))


def prominent_peaks(density: Floats, prominence: float) -> int:
    """How many maxima of a curve that is 0 outside stand out by `prominence` or more above the way to a higher one.

    What scipy.signal.find_peaks counts where no two are equally high; importing that takes a second in every process that
    measures a spectrum.
    """
    count, low, high, rising = 0, 0.0, 0.0, True
    for value in (*density.tolist(), 0.0):
        low, high = min(low, value), max(high, value)
        if rising and high - value >= prominence:
            count, rising, low = count + 1, False, value
        elif not rising and value - low >= prominence:
            rising, high = True, value
    return count
