"""Eigenvalues against singular values, and the conventions of which matrices a tensor holds."""

from __future__ import annotations

import numpy as np
import pytest

from scalespec.analysis.spectral import esd
from scalespec.analysis.spectral.esd import NATIVE, WW, SpectrumError, layer, pooled, shuffled, spectrum


def squared_singular(matrix):
    return np.sort(np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False) ** 2)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48), (500, 7), (1, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvalues_are_squared_singular_values(shape, dtype):
    weight = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = esd.eigenvalues(weight)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, squared_singular(weight), rtol=1e-10, atol=1e-11)


def test_float32_is_close_and_never_negative():
    weight = np.random.default_rng(1).standard_normal((300, 200)).astype(np.float32)
    found = esd.eigenvalues(weight, precision="float32")
    np.testing.assert_allclose(found, squared_singular(weight), rtol=1e-3)
    deficient = (weight[:, :5] @ weight[:5]).astype(np.float32)
    assert esd.eigenvalues(deficient, precision="float32").min() >= 0


def test_blocks_of_rows_add_up(monkeypatch):
    weight = np.random.default_rng(2).standard_normal((1000, 12)).astype(np.float32)
    whole = esd.gram(weight)
    monkeypatch.setattr(esd, "BLOCK_BYTES", 8 * 12 * 64)
    np.testing.assert_allclose(esd.gram(weight), whole, rtol=1e-12)
    np.testing.assert_allclose(esd.gram(weight.T), whole, rtol=1e-12)


def test_a_noncontiguous_view_is_read_right():
    weight = np.random.default_rng(3).standard_normal((40, 90))
    np.testing.assert_allclose(esd.eigenvalues(weight.T[::2]), squared_singular(weight.T[::2]), rtol=1e-9)


def conv(out, inner, kh=3, kw=3, seed=0):
    return np.random.default_rng(seed).standard_normal((out, inner, kh, kw))


def slices(weight):
    return [squared_singular(weight[:, :, i, j]) for i in range(weight.shape[2]) for j in range(weight.shape[3])]


def test_pooled_convolution_is_halved_by_weightwatcher_and_true_in_native():
    weight = conv(24, 16)
    true = np.sort(np.concatenate(slices(weight)))
    np.testing.assert_allclose(spectrum(layer(weight, "conv2d", NATIVE)).values, true, rtol=1e-9)
    np.testing.assert_allclose(spectrum(layer(weight, "conv2d", WW)).values, 0.5 * true, rtol=1e-9)


def test_unpooled_slices_are_multiplied_by_half_the_kernel_positions():
    weight = conv(24, 16)
    for at, wanted in enumerate(slices(weight)):
        np.testing.assert_allclose(spectrum(layer(weight, "conv2d", WW, at)).values, 4.5 * wanted, rtol=1e-9)


def test_even_kernels_with_fewer_outputs_swap_the_sides_in_weightwatcher_only():
    weight = conv(32, 64, 2, 2)
    assert (layer(weight, "conv2d", WW).N, layer(weight, "conv2d", WW).M) == (32, 64)
    assert (layer(weight, "conv2d", NATIVE).N, layer(weight, "conv2d", NATIVE).M) == (64, 32)
    odd = conv(32, 64)
    assert (layer(odd, "conv2d", WW).N, layer(odd, "conv2d", WW).M) == (64, 32)


def test_depthwise_kernels_are_one_matrix_in_native():
    weight = conv(48, 1)
    assert layer(weight, "conv2d", NATIVE).stack.shape == (1, 48, 9)
    assert layer(weight, "conv2d", WW).stack.shape == (9, 48, 1)


def test_three_dimensional_conv1d_keeps_the_top_values_only_in_weightwatcher():
    weight = np.random.default_rng(4).standard_normal((64, 64, 9))
    every = np.sort(np.linalg.svd(weight, compute_uv=False).ravel() ** 2)
    np.testing.assert_allclose(spectrum(layer(weight, "conv1d", WW)).values, every[-9:], rtol=1e-10)
    assert len(spectrum(layer(weight, "conv1d", NATIVE)).values) == 64 * 9


def test_rank_falls_back_to_singular_values_where_the_gram_matrix_has_no_digits():
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((64, 64)))[0] for _ in range(2))
    steep = left * np.geomspace(1, 1e-10, 64) @ right
    found = spectrum(layer(steep, "dense", WW))
    assert found.rank_loss == 0
    assert found.sv_min == pytest.approx(1e-10, rel=1e-3)
    low = rng.standard_normal((64, 40)) @ rng.standard_normal((40, 64))
    assert spectrum(layer(low, "dense", WW)).rank_loss == 24


def test_shuffling_keeps_the_elements_and_is_decided_by_the_seed():
    for dtype in (np.float32, np.float64):
        weight = np.random.default_rng(6).standard_normal((50, 30)).astype(dtype)
        one, same, other = (
            shuffled(layer(weight, "dense", WW), np.random.Generator(np.random.SFC64(seed))).stack[0]
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(np.sort(one.ravel()), np.sort(weight.ravel()))
        np.testing.assert_array_equal(one, same)
        assert (one != other).mean() > 0.99
        assert (one != weight).mean() > 0.99


def test_shuffling_moves_every_element_to_every_place_equally_often():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    rng = np.random.Generator(np.random.SFC64(0))
    counts = np.zeros((12, 12))
    for _ in range(6000):
        counts[np.arange(12), shuffled(layer(weight, "dense", WW), rng).stack.ravel().astype(int)] += 1
    # 121 degrees of freedom: mean 121, standard deviation 15.6
    assert ((counts - 500) ** 2 / 500).sum() < 121 + 5 * 15.6


def test_pooled_is_the_spectrum_without_ranks():
    weight = conv(20, 12)
    np.testing.assert_allclose(
        pooled(layer(weight, "conv2d", WW)), spectrum(layer(weight, "conv2d", WW)).values, rtol=1e-12
    )


@pytest.mark.parametrize(
    ("shape", "kind"), [((5,), "dense"), ((2, 3, 4), "dense"), ((4, 4, 3), "conv2d"), ((0, 4), "dense")]
)
def test_a_tensor_without_matrices_is_refused(shape, kind):
    with pytest.raises(SpectrumError):
        layer(np.ones(shape), kind, NATIVE)


def test_overflowing_float32_squares_are_taken_in_float64():
    weight = np.full((20, 10), 1e25, dtype=np.float32) * np.random.default_rng(7).random((20, 10)).astype(np.float32)
    np.testing.assert_allclose(
        esd.eigenvalues(weight, precision="float32")[-1], squared_singular(weight)[-1], rtol=1e-6
    )


def test_gpu_eigenvalues_match_the_cpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    weight = np.random.default_rng(8).standard_normal((700, 256)).astype(np.float32)
    cpu = esd.eigenvalues(weight, device="cpu")
    np.testing.assert_allclose(esd.eigenvalues(weight, device="cuda"), cpu, rtol=1e-9)
    np.testing.assert_allclose(esd.eigenvalues(weight, precision="float32", device="cuda"), cpu, rtol=2e-4)


@pytest.mark.parametrize("rank", [12, 5])
@pytest.mark.parametrize("error", ["OutOfMemoryError", "LinAlgError"])
def test_a_gpu_that_fails_costs_time_and_no_result(monkeypatch, rank, error):
    torch = pytest.importorskip("torch")
    raised = torch.cuda.OutOfMemoryError if error == "OutOfMemoryError" else torch.linalg.LinAlgError
    calls = []

    def fail(*args):
        calls.append(1)
        raise raised("no room")

    monkeypatch.setattr(torch.Tensor, "cuda", fail)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((30, rank)) @ rng.standard_normal((rank, 12))
    layer = esd.layer(weight, "dense", esd.NATIVE)
    there, here = (esd.spectrum(layer, device=device) for device in ("cuda", "cpu"))
    assert len(calls) == (1 if rank == 12 else 2)
    assert np.array_equal(there.values, here.values)
    assert there.rank_loss == here.rank_loss == 12 - rank
