"""What random weights of the same shape would give: Monte Carlo tables of the statistics of Gaussian matrices.

A random matrix has an alpha of 5 to 20 with a tenfold spread between draws, and every statistic depends on the shape; so a
statistic says something only against its own null. Eigenvalues of a Gaussian N × M matrix are drawn without the matrix: the
Bartlett factor of a Wishart matrix reduces further, by Householder reflections that do not change its law, to a bidiagonal
factor of independent chi variables (Dumitriu & Edelman, https://arxiv.org/abs/math-ph/0206043). That costs O(M²) a draw,
independent of N.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from scipy.linalg import lapack

from scalespec.analysis.spectral.many_fits import fits
from scalespec.analysis.spectral.power_law import NATIVE_RULE, WW_RULE, Floats, hills
from scalespec.analysis.spectral.random_matrix import jensen_shannon

VERSION = 1
"""Raised when the numbers change: older files are then not read."""

SQUARES_AT_ONCE = 1 << 18
"""Random elements drawn together: two megabytes, however large the matrices are."""

DRAWS = 400
CUT_STEPS = 8
"""The cut in units of the mean eigenvalue is rounded to eighths of a decade, and is 0 below 1e-4: there it drops less than one
in a hundred eigenvalues of a square matrix, all at the far end from the tail."""


@dataclass(frozen=True)
class Null:
    """Statistics of `DRAWS` random layers of one shape, one entry a draw; NaN where a draw has no fit."""

    alpha: Floats
    D: Floats
    tail: Floats
    hill: Floats
    stable_rank: Floats
    top: Floats
    """Largest eigenvalue over the mean one."""
    distance: Floats
    """Jensen–Shannon distance between the sorted spectra of this draw and the next."""
    spectrum: Floats
    """Mean of the sorted eigenvalues over the draws, in units of the mean eigenvalue."""

    def quantile(self, name: str, q: float) -> float:
        """The q-quantile of one statistic over the draws that have it; NaN where none has."""
        if (name, q) not in self._quantiles:
            values = getattr(self, name)
            values = values[np.isfinite(values)]
            self._quantiles[name, q] = float(np.quantile(values, q)) if len(values) else np.nan
        return self._quantiles[name, q]

    def z(self, name: str, value: float) -> float:
        """log(value) in standard deviations of the logarithm over the draws: shape no longer matters."""
        if name not in self._spread:
            logs = np.log(getattr(self, name))
            logs = logs[np.isfinite(logs)]
            self._spread[name] = (float(logs.mean()), float(logs.std(ddof=1))) if len(logs) > 1 else None
        spread = self._spread[name]
        return float((np.log(value) - spread[0]) / spread[1]) if spread is not None and value > 0 else np.nan

    # every layer of a shape asks the same of its null
    @cached_property
    def _quantiles(self) -> dict[tuple[str, float], float]:
        return {}

    @cached_property
    def _spread(self) -> dict[str, tuple[float, float] | None]:
        return {}


def null(N: int, M: int, count: int = 1, *, native: bool = False, cut: float = 0.0) -> Null:
    """The null of a layer of `count` N × M matrices, from memory, else from the cache folder, else drawn and stored there.

    native: the corrected fit's rule instead of WeightWatcher's. cut: eigenvalues at or below `cut` times the mean one do not
    enter fits (WeightWatcher's absolute cut at the layer's own scale); it is rounded.
    """
    return _null(N, M, count, native, rounded(cut))


def rounded(cut: float) -> float:
    """The cut to which a layer's null is drawn."""
    return 0.0 if cut < 1e-4 else float(10 ** (round(np.log10(cut) * CUT_STEPS) / CUT_STEPS))


@lru_cache(maxsize=256)
def _null(N: int, M: int, count: int, native: bool, cut: float) -> Null:
    folder = cache_folder()
    rule = "native" if native else "ww"
    path = folder / f"null-v{VERSION}-{N}x{M}x{count}-{rule}-{cut:.4g}-{DRAWS}.npz"
    found = _load(path)
    if found is None:
        found = draw(N, M, count, native=native, cut=cut, draws=DRAWS)
        _store(path, found)
    return found


def draw(N: int, M: int, count: int = 1, *, native: bool = False, cut: float = 0.0, draws: int = DRAWS) -> Null:
    """The null, drawn: seeded by its own key, so that it is the same on every machine."""
    spectra = _spectra(N, M, count, draws)
    table = np.full((6, draws), np.nan)
    sizes = np.count_nonzero(spectra > cut, axis=1)
    for size in np.unique(sizes[sizes > 0]):
        mine = np.flatnonzero(sizes == size)
        kept = spectra[mine, -size:]
        found = fits(kept, NATIVE_RULE if native else WW_RULE)
        table[0, mine], table[1, mine] = found.alpha, found.D
        table[2, mine] = np.where(found.tail > 0, found.tail, np.nan)
        table[3, mine] = hills(kept) if size >= 2 else np.nan
    table[4], table[5] = spectra.sum(axis=1) / spectra[:, -1], spectra[:, -1]
    distance = jensen_shannon(spectra, np.roll(spectra, -1, axis=0))
    names = [field.name for field in fields(Null)][:6]
    return Null(**dict(zip(names, table)), distance=distance, spectrum=spectra.mean(axis=0))


@lru_cache(maxsize=4)
def _spectra(N: int, M: int, count: int, draws: int) -> Floats:
    """Random spectra of one shape, one a row; the rules and cuts of a shape share them."""
    rng = np.random.default_rng([VERSION, N, M, count])
    return unit_spectra(N, M, count, draws, rng)


def unit_spectra(N: int, M: int, count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Eigenvalues of WᵀW of `count` Gaussian N × M matrices (N ≥ M), pooled, ascending, divided by their mean: [draws, count·M]."""
    values = wishart_eigenvalues(N, M, draws * count, rng).reshape(draws, count * M)
    values.sort(axis=1)
    return values / values.mean(axis=1, keepdims=True)  # type: ignore[no-any-return]


def wishart_eigenvalues(N: int, M: int, draws: int, rng: np.random.Generator) -> Floats:
    """Eigenvalues, ascending, of WᵀW for N × M matrices of independent standard normal elements, N ≥ M: [draws, M].

    WᵀW has the eigenvalues of BBᵀ for a bidiagonal B with elements from chi distributions (Dumitriu and Edelman,
    https://arxiv.org/abs/math-ph/0206043).
    """
    degrees = np.concatenate([N - np.arange(M), np.arange(M - 1, 0, -1)])
    out = np.empty((draws, M))
    at_once = max(1, SQUARES_AT_ONCE // len(degrees))
    for first in range(0, draws, at_once):
        rows = out[first : first + at_once]
        squares = rng.chisquare(degrees, size=(len(rows), len(degrees)))
        d, e = squares[:, :M], squares[:, M:]  # squares of B's diagonal, and of what stands beside it
        rows[:], beside = d, np.sqrt(d[:, :-1] * e)
        rows[:, 1:] += e
        if M > 1:
            for row, off in zip(rows, beside):
                row[:], info = lapack.dsterf(row, off)
                if info:
                    raise ArithmeticError(f"dsterf: {info} eigenvalues of a random {N} × {M} matrix did not converge")
    return np.maximum(out, 0, out=out)  # type: ignore[no-any-return]


def cache_folder() -> Path:
    """SCALESPEC_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SCALESPEC_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalespec"


def _load(path: Path) -> Null | None:
    """The stored table, or None where there is none or it cannot be read: it is then drawn anew."""
    names = [field.name for field in fields(Null)]
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Null(**{name: stored[name] for name in names})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _store(path: Path, table: Null) -> None:
    """Writes and renames, so that a reader beside us never sees half a file. A folder that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, **{field.name: getattr(table, field.name) for field in fields(Null)})
        os.replace(file.name, path)
    except OSError:
        return
