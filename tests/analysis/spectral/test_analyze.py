"""Rows of single layers: every fault is a row, every column has a place in the schema."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalespec.analysis import tables
from scalespec.analysis.spectral import NATIVE, PROFILES, WW, SpectrumError, analyze


def weight_of(shape=(96, 64), seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


PLAIN = {"kind": "dense", "randomize": False, "trust": False}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_column_is_in_the_schema_with_a_type_that_fits(profile):
    weight = weight_of((300, 150))
    options = {"vectors": True, "windows": True, "init": weight_of((300, 150), 1), "previous": weight_of((300, 150), 2)}
    rows = [
        {"run_key": "r", "step": 1, "layer": "w", **analyze(w, kind=kind, profile=profile, **extra)}
        for w, kind, extra in (
            (weight, "dense", options),
            (weight * np.nan, "dense", {}),
            (weight * 0, "dense", {}),
            (weight_of((24, 16, 3, 3)), "conv2d", {}),
            (weight_of((3,)), "dense", {}),
        )
    ]
    table = tables.from_rows(rows, tables.SPECTRA)
    filled = {name for name, value in rows[0].items() if value is not None}
    dense_only = {"error", "why", "content", "samples"}
    missing = set(tables.SPECTRA.names) - filled - dense_only
    ks2 = {name for name in tables.SPECTRA.names if name.endswith("_ks2") or name == "sigma_max"}
    assert missing == (ks2 if profile == WW else set())
    assert set(table.column("status").to_pylist()) <= set(tables.SPECTRUM_STATUSES)


def with_one(value):
    weight = weight_of()
    weight[3, 3] = value
    return weight


BROKEN = {
    "nan": (lambda: with_one(np.nan), {"nan"}),
    "inf": (lambda: with_one(np.inf), {"nan"}),
    "zero": (lambda: weight_of() * 0, {"zero"}),
    "equal spectrum": (lambda: np.eye(64, dtype=np.float32), {"failed_fit"}),
    "constant": (lambda: np.ones((96, 64), np.float32), {"failed_fit", "ok"}),
    "rank one": (lambda: np.outer(weight_of()[:, 0], weight_of()[0]), {"failed_fit", "ok"}),
    "tiny": (lambda: weight_of((3, 2)), {"too_small"}),
    "vector": (lambda: weight_of((96,)), {"too_small"}),
    "scalar": (lambda: np.float32(2), {"too_small"}),
    "empty": (lambda: weight_of((96, 0)), {"too_small"}),
    "overflow": (lambda: weight_of().astype(np.float64) * 1e200, {"nan"}),
    "underflow": (lambda: weight_of().astype(np.float64) * 1e-200, {"zero"}),
    "half": (lambda: weight_of().astype(np.float16), {"ok"}),
    "integers": (lambda: np.round(weight_of() * 10).astype(np.int64), {"ok"}),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("what", BROKEN)
def test_faults_are_rows(what, profile, precision):
    make, statuses = BROKEN[what]
    row = analyze(make(), kind="dense", profile=profile, precision=precision)
    assert row["status"] in statuses
    assert (row["error"] is None) == (row["status"] == "ok")
    assert row.get("trusted") is not True


@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(PROFILES),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
)
@settings(max_examples=60, deadline=None)
def test_no_small_matrix_raises(seed, a, b, profile, scale):
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(1.5, (a, b)) * scale * (rng.random((a, b)) < rng.random())
    row = analyze(weight, kind="dense", profile=profile, trust=False)
    assert row["status"] in tables.SPECTRUM_STATUSES


@pytest.mark.parametrize("bad", [{"kind": "linear"}, {"profile": "ww"}, {"precision": "float16"}, {"device": "tpu"}])
def test_unknown_options_are_errors(bad):
    with pytest.raises(SpectrumError, match=next(iter(bad.values()))):
        analyze(weight_of(), **{"kind": "dense", **bad})


def test_weightwatchers_limits_hold_in_its_profile_only():
    # 50,001 rows, beyond max_N; 7 values, below min_evals
    tall = weight_of((50_001, 8))
    assert analyze(tall, **PLAIN)["status"] == "failed_fit"
    assert "50000" in analyze(tall, **PLAIN)["error"]
    assert analyze(tall[:50_000], **PLAIN)["status"] == "ok"
    assert analyze(weight_of((90, 7)), **PLAIN)["status"] == "too_small"
    wide = weight_of((50_001, 24))
    assert analyze(wide, profile=NATIVE, **PLAIN)["status"] == "ok"


def test_native_does_not_depend_on_the_scale_and_weightwatcher_does():
    weight = weight_of((200, 100), scale=0.1).astype(np.float64)
    native = [analyze(weight * s, profile=NATIVE, **PLAIN) for s in (1, 1e-3, 1e-6)]
    for row in native[1:]:
        assert row["alpha_ks2"] == pytest.approx(native[0]["alpha_ks2"], rel=1e-9)
        assert row["alpha"] == pytest.approx(native[0]["alpha"], rel=1e-9)
    assert analyze(weight * 1e-6, **PLAIN)["status"] == "failed_fit"
    assert analyze(weight, **PLAIN)["alpha"] == pytest.approx(native[0]["alpha"], rel=1e-9)


def test_native_is_beside_weightwatchers_estimator_not_instead_of_it():
    row = analyze(weight_of((300, 200)), profile=NATIVE, **PLAIN)
    other = analyze(weight_of((300, 200)), profile=WW, **PLAIN)
    assert row["alpha"] == pytest.approx(other["alpha"], rel=1e-12)
    assert row["D_ks2"] >= row["D"] - 1e-12
    assert row["num_pl_spikes_ks2"] >= 10
    assert row["sigma_max"] ** 2 == pytest.approx(row["spectral_norm"])


def test_transposing_changes_nothing():
    weight = weight_of((150, 130)).astype(np.float64)
    one, other = analyze(weight, **PLAIN), analyze(weight.T, **PLAIN)
    assert one["alpha"] == pytest.approx(other["alpha"], rel=1e-8)
    assert (one["rows"], one["cols"]) == (other["rows"], other["cols"])


def test_the_seed_decides_the_shuffle():
    weight = weight_of((120, 110))
    one, same, other = (analyze(weight, kind="dense", trust=False, seed=seed) for seed in (1, 1, 2))
    assert one["rand_distance"] == same["rand_distance"] != other["rand_distance"]


def test_correlations_raise_the_distance_and_leave_the_shuffle_without_traps():
    weight = weight_of((256, 200))
    correlated = weight @ np.diag(np.geomspace(1, 10, 200)).astype(np.float32) @ weight_of((200, 200), 3)
    rows = [analyze(w, kind="dense", trust=False) for w in (weight, correlated)]
    assert rows[1]["rand_distance"] > 10 * rows[0]["rand_distance"]
    assert rows[0]["num_traps"] == rows[1]["num_traps"] == 0
    weight[2, 2] = 80
    assert analyze(weight, kind="dense", trust=False)["num_traps"] >= 1


def test_eigenvalues_are_kept_ascending_or_not_at_all():
    row = analyze(weight_of(), **PLAIN)
    assert (np.diff(row["eigenvalues"]) >= 0).all()
    assert "eigenvalues" not in analyze(weight_of(), keep_eigenvalues=False, **PLAIN)


def test_movement_since_the_start_and_the_last_checkpoint():
    init, before, now = weight_of(), weight_of(seed=1), weight_of(seed=2)
    row = analyze(now, init=init, previous=before, **PLAIN)
    assert row["distance_from_init"] == pytest.approx(np.linalg.norm(now - init) / np.linalg.norm(init), rel=1e-6)
    assert row["init_sigma_max"] == pytest.approx(np.linalg.norm(now - init, 2), rel=1e-6)
    assert row["update_norm"] == pytest.approx(np.linalg.norm(now - before) / np.linalg.norm(before), rel=1e-6)
    assert row["update_sigma_max"] == pytest.approx(np.linalg.norm(now - before, 2), rel=1e-6)
    still = analyze(now, previous=now, **PLAIN)
    assert (still["update_norm"], still["update_sigma_max"]) == (0, 0)
    assert analyze(now, init=init * 0, **PLAIN)["distance_from_init"] is None
    broken_start = analyze(now, init=init * np.nan, **PLAIN)
    assert broken_start["status"] == "ok"


def test_plain_needs_neither_shuffle_nor_verdict():
    row = analyze(weight_of(), **PLAIN)
    assert not {"num_traps", "rand_distance", "trusted", "sigma_mp", "detX_num"} & set(row)
    assert {"sigma_mp", "detX_num", "ERG_gap"} <= set(analyze(weight_of(), bulk=True, **PLAIN))
