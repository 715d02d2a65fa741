import numpy as np
import pytest

from scalespec.analysis.laws.noise import DEFAULT_DELTA, default_delta, seed_noise


def test_the_spread_between_seeds_is_pooled_over_cells():
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e6, 1e9, 50), 4)
    loss = n**-0.1 * np.exp(0.03 * rng.standard_normal(200))
    noise = seed_noise(loss, n)
    assert noise.sd == pytest.approx(0.03, rel=0.15)
    assert (noise.cells, noise.degrees) == (50, 150)
    assert default_delta(noise) == noise.sd


@pytest.mark.parametrize("cells", [0, 4, 5])
def test_five_cells_with_two_seeds_set_delta(cells):
    n = np.concatenate([np.arange(1, 9), np.arange(1, cells + 1)]).astype(float)
    loss = np.where(np.arange(len(n)) < 8, 2.0, 2.1)
    expected = pytest.approx(np.log(2.1 / 2) / np.sqrt(2)) if cells >= 5 else DEFAULT_DELTA
    assert default_delta(seed_noise(loss, n)) == expected


def test_identical_repeats_do_not_make_a_threshold_of_zero():
    n = np.repeat(np.arange(1.0, 8.0), 2)
    assert default_delta(seed_noise(n**-0.5, n)) == DEFAULT_DELTA
