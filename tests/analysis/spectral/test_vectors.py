"""Vector metrics against their definitions, one vector at a time."""

from __future__ import annotations

import numpy as np
import pytest

from scalespec.analysis.spectral.esd import WW, layer
from scalespec.analysis.spectral.vectors import discrete_entropy, localization, participation, vector_metrics


def entropy_of_one(v):
    size = np.abs(v) - np.abs(v).mean()
    p = np.histogram(size, density=True, bins=100)[0] + 1e-10
    p = p / p.sum()
    return -np.sum(p * np.log(p))


def test_metrics_follow_their_definitions_column_by_column():
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((120, 120)))[0]
    vectors[:, 0] = np.eye(120)[0]
    for at, v in enumerate(vectors.T):
        assert discrete_entropy(vectors)[at] == pytest.approx(entropy_of_one(v), rel=1e-12)
        assert localization(vectors)[at] == pytest.approx(np.linalg.norm(v, 1) / np.linalg.norm(v, np.inf))
        assert participation(vectors)[at] == pytest.approx(np.linalg.norm(v) / np.linalg.norm(v, 4))


def test_a_constant_vector_has_one_bin():
    assert discrete_entropy(np.full((50, 1), 50**-0.5))[0] == pytest.approx(0, abs=1e-6)


def test_a_localised_direction_shows_in_the_tail():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((200, 100))
    weight[:, 3] *= 30
    found = vector_metrics(layer(weight, "dense", WW), tail=1)
    assert found["tail_mean_loc_ratio"] < 3 < found["bulk_mean_loc_ratio"]
    assert found["tail_mean_vec_entropy"] < found["bulk_mean_vec_entropy"]
    assert found["tail_var_part_ratio"] == 0


def test_bulk_without_vectors_is_nan():
    found = vector_metrics(layer(np.random.default_rng(2).standard_normal((20, 10)), "dense", WW), tail=10)
    assert np.isnan(found["bulk_mean_vec_entropy"])
    assert np.isfinite(found["tail_mean_vec_entropy"])


def test_square_matrices_give_left_vectors_as_weightwatcher():
    weight = np.random.default_rng(3).standard_normal((80, 80))
    weight[5] *= 40
    found = vector_metrics(layer(weight, "dense", WW), tail=1)
    assert found["tail_mean_loc_ratio"] < 3
