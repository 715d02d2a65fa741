import numpy as np
import pytest

from scalespec.analysis.laws.bootstrap import Clusters, ends, interval

RNG = np.random.default_rng(0)


def keys(n):
    return [str(i) for i in range(n)]


def test_members_of_a_family_enter_together():
    families = np.repeat(np.arange(8), 5)
    weights, _ = Clusters.of(families, keys(40)).weights(300, RNG)
    by_family = weights.reshape(300, 8, 5)
    assert (by_family == by_family[:, :, :1]).all()
    assert (weights.sum(axis=1) == 40).all()


def test_families_are_exchanged_within_their_size_where_each_size_has_two():
    families, sizes = np.repeat(np.arange(12), 5), np.repeat(np.arange(4), 15) + 1.0
    clusters = Clusters.of(families, keys(60), sizes)
    assert "within their size" in clusters.unit
    weights, _ = clusters.weights(200, RNG)
    assert (weights.reshape(200, 4, 15).sum(axis=2) == 15).all()


def test_a_size_with_one_family_ends_the_exchange_within_sizes():
    families, sizes = np.repeat(np.arange(7), 5), np.repeat([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0], 5)
    assert len(Clusters.of(families, keys(35), sizes).strata) == 1


def test_few_families_fall_back_to_points_and_say_so():
    clusters = Clusters.of(np.repeat(np.arange(3), 5), keys(15))
    assert clusters.count == 15
    assert "3 families are too few" in clusters.unit


def test_a_label_for_every_point_is_asked_for():
    with pytest.raises(ValueError, match="families: 3 labels for 5 points"):
        Clusters.of(["a", "b", "c"], keys(5))


def test_unusable_draws_are_replaced_and_counted():
    clusters = Clusters.alone(6)
    weights, rejected = clusters.weights(200, RNG, lambda w: (w > 0).sum(axis=1) >= 4)
    assert len(weights) == 200
    assert ((weights > 0).sum(axis=1) >= 4).all()
    assert rejected > 0


def test_widened_draws_have_the_spread_of_the_estimator():
    """The mean of few normal clusters: the interval must cover as often as it says."""
    hits = 0
    for trial in range(400):
        rng = np.random.default_rng(trial)
        sample = rng.standard_normal(8)
        clusters = Clusters.alone(8)
        weights, _ = clusters.weights(400, rng)
        means = (weights @ sample / 8)[:, None]
        p = interval(sample.mean(), means[:, 0], 0.95, clusters.widening(0.95))
        hits += p.lo <= 0 <= p.hi
    assert 0.92 <= hits / 400 <= 0.975


def test_no_interval_from_few_draws():
    assert interval(1.0, np.ones(10), 0.95).lo is None
    assert interval(1.0, None, 0.95).hi is None
    assert interval(1.0, np.append(np.full(60, np.nan), np.arange(60.0)), 0.5).lo == pytest.approx(14.75)


@pytest.mark.filterwarnings("error")
def test_draws_without_a_finite_value_are_left_out_in_silence():
    draws = np.column_stack([np.arange(1.0, 61.0), np.full(60, np.inf), np.arange(1.0, 61.0)])
    draws[:20, 2] = 0.0  # has no logarithm
    lo, hi = ends(np.array([30.0, 1.0, 40.0]), draws, 0.9, 1.0, log=True)
    assert np.isnan(lo).tolist() == np.isnan(hi).tolist() == [False, True, False]
    assert lo[2] == pytest.approx(np.exp(np.quantile(np.log(np.arange(21.0, 61.0)), 0.05)))
    lo, hi = ends(np.array([30.0, 1.0, 40.0]), draws, 0.9, 1.0, log=False)
    assert (lo[2], hi[0]) == (0.0, np.quantile(draws[:, 0], 0.95))
