"""One layer to one row: the columns of `analysis.tables.SPECTRA` that concern its spectrum.

Two profiles, never mixed. `ww-0.7.7` has WeightWatcher's conventions, quirks included: pooled convolutions at half their
eigenvalues, a fit cut at 1e-5 absolute, the left-sided distance, no word about matrices beyond its limits. `native` has true
eigenvalues, a cut relative to the largest one and matrices of any size; beside WeightWatcher's estimator, applied to those
eigenvalues, it has the corrected fit `alpha_ks2`: two-sided distance, at least 10 points in the tail.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalespec.analysis.spectral import esd, metrics, power_law, random_matrix
from scalespec.analysis.spectral.esd import NATIVE, WW, Array, Layer, NonFiniteError, Spectrum, SpectrumError
from scalespec.analysis.spectral.movement import movement
from scalespec.analysis.spectral.power_law import NATIVE_RULE, WW_CUT, WW_RULE, Floats
from scalespec.analysis.spectral.trust import MIN_TAIL, UNFIT, Subject, judge
from scalespec.analysis.spectral.vectors import vector_metrics

Row = dict[str, Any]

WW_MIN_EVALS, WW_MAX_EVALS, WW_MAX_N = 8, 15_000, 50_000
"""Outside these WeightWatcher's defaults leave a layer out without a word, the token embedding of GPT-2 among them."""

NATIVE_MIN_EVALS = MIN_TAIL
"""With fewer values than the smallest tail that can be trusted, native gives the norms and no fit."""

FEW, REPLICAS = 100, 5
"""Below 100 values WeightWatcher pools five shuffles before it counts correlation traps."""


def analyze(
    weight: Array,
    *,
    kind: str,
    profile: str = WW,
    randomize: bool = True,
    trust: bool = True,
    vectors: bool = False,
    seed: int = 0,
    init: Array | None = None,
    previous: Array | None = None,
    keep_eigenvalues: bool = True,
    bulk: bool | None = None,
    windows: bool = False,
    position: int | None = None,
    precision: str = "float64",
    device: str = "auto",
) -> Row:
    """The row of one weight tensor, shaped as `esd.layer` says; columns that were not asked for are absent.

    randomize: the shuffled spectrum (`seed` decides it). bulk: the Marchenko–Pastur fit and the trace-log condition, by
    default with `randomize` or `trust`. trust: the verdict. vectors: the eigenvectors of bulk and tail. windows: the Hill
    estimate over windows of one aspect ratio. position: see `esd.layer`. init, previous: movement since those weights, of the same shape. precision,
    float64 or float32: of the Gram matrix and its eigenvalues. device: auto takes a GPU where there is one.

    Bad weights (NaN, Inf, zero, tiny, no matrix) are rows with a `status` and an `error`; only an unknown kind, profile,
    precision or device raises SpectrumError.
    """
    esd.check_options(kind, profile, precision, device)
    weight = _floating(weight)
    row: Row = {"profile": profile, "kind": kind, **_sides(weight)}
    try:
        layer = _layer(weight, kind, profile, position)
        row |= {"rows": layer.N, "cols": layer.M, "matrices": len(layer.stack)}
        spectrum = _spectrum(layer, precision, device)
        if trust and precision == "float32" and spectrum.rank_loss:
            # of a square matrix the smallest eigenvalues are beyond float32, and the verdict asks for the rank
            spectrum = _spectrum(layer, "float64", device)
        values = spectrum.values
        if keep_eigenvalues:
            row["eigenvalues"] = values
        if not values[-1] > 0:
            raise _Unfit("zero", "every weight is zero, or so small that its square is")
        row |= metrics.scale_metrics(spectrum)
        if init is not None or previous is not None:
            row |= movement(weight, kind, init, previous, precision=precision, device=device)
        if profile == NATIVE:
            row["sigma_max"] = float(values[-1]) ** 0.5
            if len(values) < NATIVE_MIN_EVALS:
                raise _Unfit("too_small", f"{len(values)} eigenvalues, {NATIVE_MIN_EVALS} needed for a fit")
        if bulk or (bulk is None and (randomize or trust)):
            row |= _bulk(values, layer)
        if randomize:
            row |= _randomized(values, layer, seed, precision, device)
        if windows and len(layer.stack) == 1:
            row["alpha_farms"] = random_matrix.windowed_hill(layer.stack[0])
        row |= _fitted(row, values, layer, profile, trust, vectors, seed)
    except _Unfit as unfit:
        row |= {"status": unfit.status, "error": unfit.error}
        if trust and unfit.status == "too_small":
            row |= UNFIT
    return row


class _Unfit(Exception):
    """A layer whose row ends here, and why."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


def _floating(weight: Array) -> Array:
    weight = np.asarray(weight)
    return weight if weight.dtype in (np.float32, np.float64) else weight.astype(np.float64)


def _sides(weight: Array) -> Row:
    sides = sorted((*weight.shape, 1, 1)[:2]) if weight.ndim > 1 else [1, weight.size]
    return {"rows": int(sides[1]), "cols": int(sides[0])}


def _layer(weight: Array, kind: str, profile: str, position: int | None) -> Layer:
    """The layer, unless it holds no matrix or WeightWatcher leaves it out.

    What is too large for WeightWatcher has no status of its own: it is a fit that was not made.
    """
    try:
        layer = esd.layer(weight, kind, profile, position)
    except SpectrumError as error:
        raise _Unfit("too_small", str(error)) from None
    if profile == WW:
        evals = layer.M * (1 if layer.keep is not None else len(layer.stack))
        if evals < WW_MIN_EVALS:
            raise _Unfit("too_small", f"{evals} eigenvalues, WeightWatcher asks for {WW_MIN_EVALS}")
        if evals > WW_MAX_EVALS or layer.N > WW_MAX_N:
            limit = f"{evals} eigenvalues > {WW_MAX_EVALS}" if evals > WW_MAX_EVALS else f"N = {layer.N} > {WW_MAX_N}"
            raise _Unfit("failed_fit", f"WeightWatcher leaves it out ({limit}); profile native does not")
    return layer


def _spectrum(layer: Layer, precision: str, device: str) -> Spectrum:
    try:
        return esd.spectrum(layer, precision=precision, device=device)
    except NonFiniteError:
        bad = int(np.count_nonzero(~np.isfinite(layer.stack)))
        what = f"{bad} of {layer.stack.size} weights are NaN or Inf" if bad else "the squares of the weights overflow"
        raise _Unfit("nan", what) from None


def _bulk(values: Floats, layer: Layer) -> Row:
    fitted = random_matrix.fit_bulk(values, layer.N, layer.M)
    size, first = random_matrix.trace_log(values)
    scaled = values[first] * len(values) / values.sum()
    row: Row = {"detX_num": size, "num_ERG_spikes": size}
    # the two names are swapped in WeightWatcher: `detX_val` is in the units of the eigenvalues
    row |= {"detX_val": float(values[first]), "detX_val_unrescaled": float(scaled)}
    if fitted is not None:
        row |= {"num_spikes": fitted.spikes, "sigma_mp": fitted.sigma, "mp_softrank": fitted.softrank}
        row |= {"bulk_min": fitted.lower, "bulk_max": fitted.upper, "W_scale": fitted.scale}
    return row


def _randomized(values: Floats, layer: Layer, seed: int, precision: str, device: str) -> Row:
    """All randomised columns from one shuffle (five where WeightWatcher pools five; the first of them for the distance)."""
    rng = np.random.Generator(np.random.SFC64(seed))
    replicas = REPLICAS if layer.components < FEW else 1
    shuffles = [esd.pooled(esd.shuffled(layer, rng), precision=precision, device=device) for _ in range(replicas)]
    first, every = shuffles[0], np.sort(np.concatenate(shuffles))
    top = float(first[-1])
    row: Row = {
        "max_rand_eval": float(every[-1]),
        "rand_distance": float(random_matrix.jensen_shannon(values, first)),
        "ww_softrank": top / float(values[-1]),
        "ww_maxdist": float(values[-1]) - top,
    }
    fitted = random_matrix.fit_bulk(every, layer.N, layer.M)
    if fitted is not None:
        row |= {"num_traps": fitted.spikes, "rand_num_spikes": fitted.spikes, "rand_sigma_mp": fitted.sigma}
        row |= {"rand_mp_softrank": fitted.softrank, "rand_W_scale": fitted.scale}
        row |= {"rand_bulk_min": fitted.lower, "rand_bulk_max": fitted.upper}
    return row


def _fitted(row: Row, values: Floats, layer: Layer, profile: str, trusting: bool, vectors: bool, seed: int) -> Row:
    """The fits of the profile and what hangs on them: trace-log gap, eigenvectors, verdict."""
    cut = WW_CUT if profile == WW else len(values) * metrics.EPS * float(values[-1])
    kept = values[np.searchsorted(values, cut, side="right") :]
    found = power_law.fit(kept, WW_RULE)
    out: Row = {"alpha_hill": power_law.hill(kept), "status": "ok", "error": None}
    if found is None:
        what = "are equal" if len(kept) > 1 else "are too few"
        return out | {"status": "failed_fit", "error": f"no tail: the {len(kept)} eigenvalues above {cut:.3g} {what}"}
    out |= metrics.fit_metrics(values, found)
    if "detX_num" in row:
        out["ERG_gap"] = row["detX_num"] - out["num_pl_spikes"]
    rule = WW_RULE
    if profile == NATIVE:
        corrected = power_law.fit(kept, NATIVE_RULE)
        if corrected is None:
            return out | {"status": "failed_fit", "error": f"no tail of {NATIVE_RULE.min_tail} with a finite exponent"}
        found, rule = corrected, NATIVE_RULE
        out |= {"alpha_ks2": found.alpha, "xmin_ks2": found.xmin, "D_ks2": found.D, "sigma_ks2": found.sigma}
        out["num_pl_spikes_ks2"] = metrics.tail_size(values, found.xmin)
    if vectors:
        out |= vector_metrics(layer, metrics.tail_size(values, found.xmin))
    if trusting:
        sides = layer.stack.shape[1:]
        shape = (max(sides), min(sides), len(layer.stack))
        relative = WW_CUT / float(values.mean()) if profile == WW else 0.0
        subject = Subject(values, kept, shape, found, rule, profile == NATIVE, relative)
        out |= judge(subject, {**row, **out}, seed)
    return out
