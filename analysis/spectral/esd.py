"""Empirical spectral density: which matrices a layer holds, and their eigenvalues λ = σ², ascending and unscaled.

Eigenvalues come from the Gram matrix on the short side and a symmetric eigensolver: three to four times faster than an SVD,
with every λ > 1e-5 within 2e-12 relative. Only questions about the rank need digits that a Gram matrix does not have; there
singular values take over.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg import lapack

from scalespec.analysis.spectral.power_law import Floats

Array = NDArray[Any]
T = TypeVar("T")

WW, NATIVE = "ww-0.7.7", "native"
PROFILES = (WW, NATIVE)
KINDS = ("dense", "conv1d", "conv2d", "embedding")
PRECISIONS = ("float64", "float32")
DEVICES = ("auto", "cpu", "cuda")

WW_CONV_FACTOR = 0.5
"""WeightWatcher multiplies each slice of a pooled convolution by √(1/2): its eigenvalues are half the true ones."""

GRAM_DIGITS = 1e-12
"""Below this share of the largest eigenvalue a float64 Gram matrix has no digits left for the rank."""

SINGLE_DIGITS = float(np.finfo(np.float32).eps)
"""The same for a float32 Gram matrix; the rank is then the Gram's own, within one or two."""

BLOCK_BYTES = 64 * 2**20
"""Rows of a matrix converted to float64 at a time: the Gram matrix of an embedding needs no float64 copy of it."""

MATMUL_MODE = threading.Lock()
"""torch has one precision of float32 products for all threads."""


class SpectrumError(ValueError):
    """A tensor that has no matrices, or an option that does not exist."""


class NonFiniteError(ArithmeticError):
    """A Gram matrix with NaN or Inf: such weights, or squares that overflow."""


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer, all of one shape."""

    stack: Array
    """count × a × b"""
    N: int
    """The larger dimension (see `layer` for the one case where WeightWatcher swaps it with the smaller one)."""
    M: int
    factor: float = 1.0
    """Multiplies every eigenvalue."""
    keep: int | None = None
    """Only the largest `keep` singular values of all slices count."""

    @property
    def Q(self) -> float:
        """Aspect ratio N/M."""
        return self.N / self.M

    @property
    def components(self) -> int:
        """How many eigenvalues the profile counts on: M per matrix."""
        return self.keep if self.keep is not None else self.M * len(self.stack)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a layer, ascending, and what the ranks need."""

    values: Floats
    N: int
    M: int
    count: int
    rank_loss: int
    """Singular values at or below max σ · N · eps of their matrix, summed over matrices."""
    sv_min: float
    """WeightWatcher's: the largest of the slices' smallest singular values; for one matrix, the smallest."""

    @property
    def Q(self) -> float:
        """Aspect ratio N/M."""
        return self.N / self.M


def layer(weight: Array, kind: str, profile: str, position: int | None = None) -> Layer:
    """The matrices of a weight tensor: dense and embedding a × b; conv1d a × b or out × in × k; conv2d out × in × kh × kw.

    Quirks of `ww-0.7.7` that are kept: N and M of a convolution with out < in have changed places when the kernel has an even
    number of positions or is larger than the channels; a 3-D tensor is one "matrix" with N and M its largest and smallest
    dimension, of whose singular values only the top M are kept.
    position: only that kernel position of a 2-D convolution, at count/2 times its eigenvalues: WeightWatcher's pool=False.
    Raises SpectrumError where there is no matrix.
    """
    shape = weight.shape
    if 0 in shape:
        raise SpectrumError(f"a {kind} weight of shape {'×'.join(map(str, shape))} is empty")
    if weight.ndim == 2:
        return Layer(weight[None], max(shape), min(shape))
    if weight.ndim == 3 and kind == "conv1d":
        if profile == WW:
            return Layer(weight, max(shape), min(shape), keep=min(shape))
        if shape[1] == 1:
            return Layer(weight.reshape(1, shape[0], shape[2]), *_sides(shape[0], shape[2]))
        return Layer(np.moveaxis(weight, 2, 0), *_sides(shape[0], shape[1]))
    if weight.ndim == 4 and kind == "conv2d":
        if profile == NATIVE:
            return _native_conv(weight)
        whole = _ww_conv(weight)
        if position is None:
            return whole
        one = whole.stack[position : position + 1]
        return Layer(one, whole.N, whole.M, WW_CONV_FACTOR * len(whole.stack))
    raise SpectrumError(f"a {kind} weight of {weight.ndim} dimensions ({'×'.join(map(str, shape))}) holds no matrix")


def _sides(a: int, b: int) -> tuple[int, int]:
    return max(a, b), min(a, b)


def _ww_conv(weight: Array) -> Layer:
    a, b, kh, kw = weight.shape
    # each slice that is turned upright swaps N and M once more; where the kernel is larger than the channels none is counted
    swapped = a < b and a + b >= kh + kw and kh * kw % 2 == 1
    N, M = (b, a) if swapped else (a, b)
    return Layer(weight.transpose(2, 3, 0, 1).reshape(kh * kw, a, b), N, M, WW_CONV_FACTOR)


def _native_conv(weight: Array) -> Layer:
    """One matrix a kernel position; a depthwise convolution is one matrix out × kernel positions."""
    out, inner, kh, kw = weight.shape
    if inner == 1:
        return Layer(weight.reshape(1, out, kh * kw), *_sides(out, kh * kw))
    return Layer(weight.transpose(2, 3, 0, 1).reshape(kh * kw, out, inner), *_sides(out, inner))


def spectrum(layer: Layer, *, precision: str = "float64", device: str = "cpu") -> Spectrum:
    """Eigenvalues of all matrices of the layer, pooled. The weights must be finite and not all zero."""
    if layer.keep is not None:
        return _truncated(layer)
    digits = GRAM_DIGITS if precision == "float64" else SINGLE_DIGITS
    parts, rank_loss, sv_min = [], 0, 0.0
    for matrix in layer.stack:
        values = eigenvalues(matrix, precision=precision, device=device) * layer.factor
        sigma = np.sqrt(values)
        if values[0] <= digits * values[-1]:
            if precision == "float64":
                sigma = np.sort(_singular_values(matrix, device)) * layer.factor**0.5
                values = sigma * sigma
                rank_loss += int(np.count_nonzero(sigma <= sigma[-1] * layer.N * np.finfo(np.float64).eps))
            else:
                rank_loss += int(np.count_nonzero(values <= digits * values[-1]))
        sv_min = max(sv_min, float(sigma[0]))
        parts.append(values)
    values = np.sort(np.concatenate(parts)) if len(parts) > 1 else parts[0]
    return Spectrum(values, layer.N, layer.M, len(parts), rank_loss, sv_min)


def pooled(layer: Layer, *, precision: str = "float64", device: str = "cpu") -> Floats:
    """The eigenvalues alone, ascending: no ranks."""
    if layer.keep is not None:
        return _truncated(layer).values
    return (
        np.sort(np.concatenate([eigenvalues(m, precision=precision, device=device) for m in layer.stack]))
        * layer.factor
    )


def _truncated(layer: Layer) -> Spectrum:
    if not np.isfinite(layer.stack).all():
        raise NonFiniteError
    sigma = np.sort(np.linalg.svd(layer.stack.astype(np.float64), compute_uv=False).ravel())[-layer.components :]
    lost = int(np.count_nonzero(sigma <= sigma[-1] * layer.N * np.finfo(np.float64).eps))
    return Spectrum(sigma * sigma * layer.factor, layer.N, layer.M, 1, lost, float(sigma[0]))


def eigenvalues(matrix: Array, *, precision: str = "float64", device: str = "cpu") -> Floats:
    """Squared singular values of an a × b matrix, min(a, b) of them, ascending, as float64; none is negative.

    float32 squares that overflow are taken again in float64. Raises NonFiniteError where those are not finite either.
    """
    on_gpu = functools.partial(_gpu_eigenvalues, matrix, precision)
    on_cpu = functools.partial(_cpu_eigenvalues, matrix, precision)
    found = _gpu_or_cpu(on_gpu, on_cpu) if use_gpu(device) else on_cpu()
    if found is not None:
        return np.asarray(np.maximum(found, 0), dtype=np.float64)
    if precision == "float64":
        raise NonFiniteError
    return eigenvalues(matrix, device=device)


def _cpu_eigenvalues(matrix: Array, precision: str) -> Array | None:
    with np.errstate(over="ignore", invalid="ignore"):
        product = gram(matrix, precision)
    if not np.isfinite(np.trace(product)):
        return None
    return _eigvalsh(product)


def _eigvalsh(product: Array) -> Array:
    """scipy.linalg.eigvalsh(driver="evd"), whose checks take longer than a small matrix: LAPACK's ?syevd with the same workspace.

    The Gram matrix is symmetric to the last bit, so its transpose saves LAPACK's copy into columns.
    """
    n, single = len(product), product.dtype == np.float32
    work, integers = _workspace(n, single)
    solve = lapack.ssyevd if single else lapack.dsyevd
    found, _, info = solve(product.T, compute_v=0, lower=1, lwork=work, liwork=integers, overwrite_a=1)
    if info:
        raise scipy.linalg.LinAlgError(f"syevd: {info} eigenvalues of a {n} × {n} matrix did not converge")
    return np.asarray(found)


@functools.cache
def _workspace(n: int, single: bool) -> tuple[int, int]:
    ask = lapack.ssyevd_lwork if single else lapack.dsyevd_lwork
    work, integers, _ = ask(n, compute_v=0, lower=1)
    # in float32 a size above 2^24 is rounded: https://github.com/scipy/scipy/issues/10630
    return int(np.nextafter(work, np.inf)) if single else int(work), int(integers)


def gram(matrix: Array, precision: str = "float64") -> Array:
    """The Gram matrix on the short side, M × M, accumulated over blocks of the long side; of a square matrix, W·Wᵀ."""
    tall = matrix if matrix.shape[0] > matrix.shape[1] else matrix.T
    rows = max(1, BLOCK_BYTES // (8 * tall.shape[1]))
    blocks = (tall[at : at + rows].astype(precision, copy=False) for at in range(0, len(tall), rows))
    first = next(blocks)
    total: Array = first.T @ first
    for block in blocks:
        total += block.T @ block
    return total


def _singular_values(matrix: Array, device: str) -> Floats:
    """In float64, on the GPU where the eigenvalues are taken there: a fallback on the CPU would cost fifteen of them."""

    def on_gpu() -> Array:
        import torch

        with torch.no_grad():
            there = torch.from_numpy(np.ascontiguousarray(matrix)).cuda().double()
            return np.asarray(torch.linalg.svdvals(there).cpu())

    def on_cpu() -> Array:
        return np.asarray(scipy.linalg.svdvals(matrix.astype(np.float64), check_finite=False))

    return np.asarray(_gpu_or_cpu(on_gpu, on_cpu) if use_gpu(device) else on_cpu(), dtype=np.float64)


def _gpu_or_cpu(on_gpu: Callable[[], T], on_cpu: Callable[[], T]) -> T:
    """The result from the GPU, or from the CPU where the GPU has no room for it or its solver gives up."""
    import torch

    try:
        return on_gpu()
    except (torch.cuda.OutOfMemoryError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return on_cpu()


def check_options(kind: str, profile: str, precision: str, device: str) -> None:
    """Raises SpectrumError for a name that does not exist."""
    for what, value, known in (
        ("kind", kind, KINDS),
        ("profile", profile, PROFILES),
        ("precision", precision, PRECISIONS),
        ("device", device, DEVICES),
    ):
        if value not in known:
            raise SpectrumError(f"{what} {value!r} is none of {', '.join(known)}")


def use_gpu(device: str) -> bool:
    """auto means the GPU where there is one. torch is imported only on a machine with a CUDA driver."""
    return device == "cuda" or (device == "auto" and _gpu_present())


@functools.cache
def _gpu_present() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    drivers = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
    if sys.platform == "linux" and not any(driver.exists() for driver in drivers):
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _gpu_eigenvalues(matrix: Array, precision: str) -> Array | None:
    """The same on the GPU: the weights travel in their own dtype and are multiplied in `precision`, never in float16."""
    import torch

    dtype = torch.float64 if precision == "float64" else torch.float32
    with torch.no_grad():
        tall = torch.from_numpy(np.ascontiguousarray(matrix)).cuda().to(dtype)
        if tall.shape[0] < tall.shape[1]:
            tall = tall.T
        # TF32 keeps ten bits of the products: https://docs.pytorch.org/docs/stable/notes/cuda.html
        with MATMUL_MODE:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                product = tall.T @ tall
            finally:
                torch.set_float32_matmul_precision(before)
        if not bool(torch.isfinite(product.trace())):
            return None
        return np.asarray(torch.linalg.eigvalsh(product).double().cpu().numpy())


def shuffled(layer: Layer, rng: np.random.Generator) -> Layer:
    """The layer with the elements of each matrix in random order: what its spectrum would be without correlations.

    float32 elements ride in the low half of 64-bit words whose high half is random, and the words are sorted: two to three
    times faster than exchanging elements, because a vectorised sort works in cache. The 2⁻³² chance of equal keys a pair
    leaves a few hundred pairs of a large matrix in order of value, out of millions.
    """
    out = np.empty_like(layer.stack)
    for matrix, target in zip(layer.stack, out):
        if matrix.dtype == np.float32:
            words = rng.bit_generator.random_raw(matrix.size)  # type: ignore[union-attr]
            words &= np.uint64(0xFFFFFFFF00000000)
            words |= matrix.reshape(-1).view(np.uint32)
            words.sort()
            target[:] = words.astype(np.uint32).view(np.float32).reshape(matrix.shape)
        else:
            target[:] = rng.permutation(matrix.reshape(-1)).reshape(matrix.shape)
    return Layer(out, layer.N, layer.M, layer.factor, layer.keep)
