import numpy as np
import pytest
from surfaces import EPOCH, read

from scalespec.analysis.laws import FitStatus, chinchilla_loss, fit_isoflop
from scalespec.analysis.laws.isoflop import budgets_of, minimum, profiles

HOFFMANN = {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.33917084, "beta": 0.2849083}
LOPSIDED = {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.465, "beta": 0.155}


def grid(surface, half_width, budgets=5, points=15):
    """Budgets 1e17 … 1e21 with sizes spread by ×half_width about each optimum: N, C, loss."""
    c = np.geomspace(1e17, 1e21, budgets)
    n = best_size(surface, c)[:, None] * np.geomspace(1 / half_width, half_width, points)
    c = np.broadcast_to(c[:, None], n.shape)
    return n.ravel(), c.ravel(), chinchilla_loss(surface, n, c / (6 * n)).ravel()


def best_size(p, c):
    ratio = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return ratio * (c / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))


@pytest.mark.parametrize("method", ["akima", "parabola"])
@pytest.mark.parametrize("surface", [HOFFMANN, EPOCH, LOPSIDED], ids=["Hoffmann", "Epoch", "lopsided"])
def test_exact_profiles_give_the_exponent_back(surface, method):
    law, found = fit_isoflop(*grid(surface, 8), method=method, resamples=0)
    assert all(p.status == "interior" for p in found)
    assert law["a"] == pytest.approx(surface["beta"] / (surface["alpha"] + surface["beta"]), abs=0.002)


@pytest.mark.parametrize(
    ("surface", "half_width", "published"),
    [(HOFFMANN, 4, 0.013), (HOFFMANN, 16, 0.054), (EPOCH, 16, -0.016), (LOPSIDED, 8, 0.162), (LOPSIDED, 16, 0.301)],
)
def test_a_parabola_through_all_points_is_biased_and_the_window_is_not(surface, half_width, published):
    """The bias of N_opt(1e24) from wide grids, https://arxiv.org/abs/2603.22339."""
    n, c, loss = grid(surface, half_width)
    x, optima = np.log(n).reshape(5, -1), []
    for row, losses in zip(x, loss.reshape(5, -1), strict=True):
        quadratic, slope, _ = np.polyfit(row, losses, 2)
        optima.append(-slope / (2 * quadratic))
    budgets = np.log(np.unique(c))
    line = np.polyfit(budgets, optima, 1)
    truth = np.log(best_size(surface, 1e24))
    assert np.exp(np.polyval(line, np.log(1e24)) - truth) - 1 == pytest.approx(published, abs=0.01)
    law, _ = fit_isoflop(n, c, loss, resamples=0)
    assert np.log(law["G"] * 1e24 ** law["a"]) - truth == pytest.approx(0, abs=0.02)


def test_an_optimum_at_the_edge_is_flagged_and_never_used():
    n, c, loss = grid(HOFFMANN, 8)
    shifted = n * np.where(c > 5e20, 60.0, 1.0)
    loss = chinchilla_loss(HOFFMANN, shifted, c / (6 * shifted))
    law, found = fit_isoflop(shifted, c, loss, resamples=0)
    assert [p.status for p in found] == ["interior"] * 4 + ["smallest"]
    assert not found[-1].used
    assert np.isnan(found[-1].n_opt)
    assert law["a"] == pytest.approx(0.4565, abs=0.003)


def test_edges_only_are_too_few_points():
    n, c, _ = grid(HOFFMANN, 8)
    n = n * 60
    law, found = fit_isoflop(n, c, chinchilla_loss(HOFFMANN, n, c / (6 * n)))
    assert law.status == {FitStatus.TOO_FEW_POINTS}
    assert {p.status for p in found} == {"smallest"}


def test_budgets_are_split_at_gaps_and_not_at_the_edges_of_buckets():
    c = np.array([1.5e19, 2.4e19, 0.99e18, 1.01e18, 1.5e19 * 1.02])
    assert budgets_of(c).tolist() == [1, 2, 0, 0, 1]


def test_repeats_are_averaged_before_the_minimum():
    n, c, loss = grid(HOFFMANN, 8)
    rng = np.random.default_rng(0)
    many = profiles(np.tile(n, 200), np.tile(c, 200), np.tile(loss, 200) * np.exp(0.01 * rng.standard_normal(15_000)))
    assert len(many[0].n) == 15
    assert many[0].loss_opt == pytest.approx(loss[:15].min(), rel=2e-3)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_few_sizes_have_no_minimum(k):
    assert minimum(np.arange(1.0, k + 1), np.arange(1.0, k + 1))[2] == "too_few"


@pytest.mark.parametrize(
    ("hparams", "warmup", "decay", "count", "published"),
    [
        ("base", "long", "kaplan", "kaplan", 0.835),
        ("base", "long", "kaplan", "standard", 0.706),
        ("base", "short", "kaplan", "standard", 0.602),
        ("base", "short", "chinchilla", "standard", 0.571),
        ("tuned", "short", "const", "standard", 0.497),
    ],
)
def test_porians_exponents(shared, hparams, warmup, decay, count, published):
    table = read(shared, "porian_points.csv").dropna(subset=["N", "loss"])
    mine = (
        (table["dataset"] == "rw")
        & (table["hparams"] == hparams)
        & (table["warmup"] == warmup)
        & (table["decay"] == decay)
        & (table["param_count"] == count)
    )
    law, _ = fit_isoflop(table[mine]["N"], table[mine]["flops"], table[mine]["loss"], resamples=100)
    assert law["a"] == pytest.approx(published, abs=0.01)
    assert law.params["a"].lo < published < law.params["a"].hi


def test_families_are_resampled_where_there_are_enough():
    n, c, loss = (np.tile(x, 3) for x in grid(EPOCH, 8, points=9))
    rng = np.random.default_rng(0)
    families = [f"{seed}-{size:.4g}" for seed, size in zip(np.repeat([0, 1, 2], 45), n, strict=True)]
    law, _ = fit_isoflop(n, c, loss * np.exp(0.005 * rng.standard_normal(len(n))), families=families, resamples=100)
    assert "families" in law.resampling
    assert law.params["a"].lo < 0.514 < law.params["a"].hi
