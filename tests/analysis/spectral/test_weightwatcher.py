"""Parity with WeightWatcher 0.7.7: the golden table of a real model, and live where the package is installed."""

from __future__ import annotations

import logging
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.spectral import analyze, layer_rows, summarize
from scalespec.orchestrator.spectra.weights import read, references

EXACT = ("alpha", "xmin", "D")
COUNTS = (
    "num_evals",
    "num_pl_spikes",
    "matrix_rank",
    "rank_loss",
    "weak_rank_loss",
    "num_spikes",
    "detX_num",
    "num_ERG_spikes",
    "ERG_gap",
)
CLOSE = (
    "sigma",
    "xmax",
    "norm",
    "log_norm",
    "lambda_max",
    "spectral_norm",
    "log_spectral_norm",
    "alpha_weighted",
    "log_alpha_norm",
    "stable_rank",
    "sv_max",
    "entropy",
    "W_scale",
    "bulk_min",
    "bulk_max",
    "mp_softrank",
    "detX_val",
    "detX_val_unrescaled",
)
PLAIN = {"randomize": False, "trust": False, "bulk": True, "keep_eigenvalues": False}


def compare(ours, theirs):
    for name in COUNTS:
        assert ours[name] == theirs[name], name
    for name in EXACT:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-9), name
    for name in CLOSE:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-8, abs=1e-12), name
    assert ours["sigma_mp"] == pytest.approx(theirs["sigma_mp"], rel=1e-8)
    # the smallest singular value comes from a Gram matrix: digits to about 1e-8 of the largest
    assert ours["sv_min"] == pytest.approx(theirs["sv_min"], rel=1e-5, abs=1e-9 * theirs["sv_max"])


@pytest.fixture(scope="module")
def golden(shared):
    return pd.read_csv(shared / "golden" / "minilm_ww077.csv").set_index("longname")


@pytest.fixture(scope="module")
def minilm_rows(minilm):
    return {
        ref.layer.removesuffix(".weight"): analyze(read(ref), kind=ref.kind, vectors=True, **PLAIN)
        for ref in references(minilm, every=False)
    }


def test_every_layer_of_the_golden_table(golden, minilm_rows):
    fitted = {name: row for name, row in minilm_rows.items() if row["status"] == "ok"}
    assert set(fitted) == set(golden.index)
    for name, theirs in golden.iterrows():
        compare(fitted[name], theirs)
        assert (fitted[name]["warning"] or "") == (theirs["warning"] if isinstance(theirs["warning"], str) else "")


def test_vectors_of_the_golden_table(golden, minilm_rows):
    """WeightWatcher compares eigenvalues of one solver with xmin of another, so the vector at xmin falls in or out by rounding."""
    for name, theirs in golden.iterrows():
        ours, tail = minilm_rows[name], theirs["num_pl_spikes"]
        for metric in ("vec_entropy", "loc_ratio", "part_ratio"):
            for place, n in (("bulk", theirs["num_evals"] - tail), ("tail", tail)):
                mean, var = (theirs[f"{place}_{moment}_{metric}"] for moment in ("mean", "var"))
                # one vector more or less moves a mean by at most its deviation from it over n
                room = 6 * np.sqrt(max(var, 1e-12)) / n + 1e-9
                assert abs(ours[f"{place}_mean_{metric}"] - mean) <= room, (name, metric, place)


def test_summary_of_the_golden_model(minilm_rows):
    found = summarize(minilm_rows.values())
    for name, value in (
        ("mean_log_norm", 2.930735),
        ("ww_mean_alpha", 4.117094),
        ("alpha_median", 3.5503),
        ("mean_alpha_weighted", 5.0648),
        ("mean_log_alpha_norm", 5.595981),
        ("mean_log_spectral_norm", 1.394061),
        ("mean_stable_rank", 38.062925),
        ("mean_mp_softrank", 0.341133),
    ):
        assert found[name] == pytest.approx(value, rel=2e-5), name
    assert (found["n_used"], found["n_total"]) == (39, 40)


def test_float32_stays_within_its_tolerance(golden, minilm):
    for ref in references(minilm, every=False):
        if ref.layer.endswith("layer.0.output.dense.weight"):
            row = analyze(read(ref), kind="dense", precision="float32", **PLAIN)
            theirs = golden.loc[ref.layer.removesuffix(".weight")]
            assert row["alpha"] == pytest.approx(theirs["alpha"], rel=1e-3)
            assert abs(row["num_pl_spikes"] - theirs["num_pl_spikes"]) <= 1
            return
    raise AssertionError("layer not found")


@pytest.fixture(scope="module")
def watch():
    """WeightWatcher's table of a dictionary of layers; its import turns warnings off for the whole process, undone here."""
    pytest.importorskip("torch")
    disabled, filters = logging.root.manager.disable, warnings.filters[:]
    logging.disable(logging.CRITICAL)
    try:
        weightwatcher = pytest.importorskip("weightwatcher", reason="pip install weightwatcher==0.7.7 to compare live")
        if weightwatcher.__version__ != "0.7.7":
            pytest.skip(f"weightwatcher is {weightwatcher.__version__}, the reference is 0.7.7")
        yield partial(weightwatchers_table, weightwatcher)
    finally:
        logging.disable(disabled)
        warnings.filters[:] = filters


def weightwatchers_table(weightwatcher, layers, **options):
    import torch
    from torch import nn

    model = nn.ModuleDict()
    for name, weight in layers.items():
        a, b = weight.shape[:2]
        made = nn.Linear(b, a, bias=False) if weight.ndim == 2 else nn.Conv2d(b, a, weight.shape[2:], bias=False)
        made.weight = nn.Parameter(torch.from_numpy(weight))
        model[name] = made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weightwatcher.WeightWatcher(model=model).analyze(detX=True, **options)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heavy(*shape, seed=0):
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


CASES = {
    "N less than M": heavy(60, 150),
    "N equals M": heavy(120, 120),
    "tall Gaussian": normal(256, 64),
    "under 20": heavy(64, 16),
    "under 100": heavy(120, 90),
    "scale 1e-2": heavy(120, 60) * np.float32(1e-2),
    "rank deficient": (normal(100, 30) @ normal(30, 80, seed=1)),
    "conv": heavy(24, 16, 3, 3),
    "conv, fewer outputs": heavy(16, 24, 3, 3),
    "conv, even kernel": heavy(16, 24, 2, 2),
    "conv 1 × 1": heavy(64, 32, 1, 1),
    "conv, kernel larger than channels": heavy(3, 4, 7, 7),
    "depthwise": heavy(48, 1, 3, 3),
}


@pytest.fixture(scope="module")
def live(watch):
    table = watch(CASES, mp_fit=True)
    return (
        {name: table.iloc[at] for at, name in enumerate(CASES)}
        if len(table) == len(CASES)
        else dict(zip(table["longname"], table.iloc))
    )


@pytest.mark.parametrize("name", CASES)
def test_live(name, live):
    weight = CASES[name]
    ours = analyze(weight, kind="dense" if weight.ndim == 2 else "conv2d", **PLAIN)
    theirs = live[name]
    assert (ours["rows"], ours["cols"]) == (theirs["N"], theirs["M"])
    if name == "rank deficient":
        # 50 eigenvalues are rounding noise, whose sum of logarithms no two libraries share
        assert ours["alpha"] == pytest.approx(theirs["alpha"], rel=1e-9)
        assert (ours["rank_loss"], ours["matrix_rank"]) == (theirs["rank_loss"], theirs["matrix_rank"])
        return
    compare(ours, theirs)


@pytest.mark.parametrize("name", ["conv, even kernel", "conv 1 × 1"])
def test_live_unpooled(name, watch):
    weight = CASES[name]
    table = watch({name: weight}, pool=False, mp_fit=True)
    ours = layer_rows(name, weight, kind="conv2d", pool=False, **PLAIN)
    assert len(table) == len(ours) == weight.shape[2] * weight.shape[3]
    for row, (_, theirs) in zip(ours, table.iterrows()):
        compare(row, theirs)


def test_live_tiny_weights_fail_alike(watch):
    weight = normal(128, 64) * np.float32(1e-5)
    theirs = watch({"w": weight}).iloc[0]
    ours = analyze(weight, kind="dense", **PLAIN)
    assert (theirs["status"], theirs["alpha"]) == ("failed", -1)
    assert (ours["status"], ours.get("alpha")) == ("failed_fit", None)
    assert summarize([ours])["ww_mean_alpha"] == -1


def test_live_what_is_left_out_is_left_out(watch):
    layers = {"beyond max_N": normal(50_001, 8), "too small": normal(64, 7), "kept": normal(64, 32)}
    theirs = watch(layers)
    assert list(theirs["longname"]) == ["kept"]
    rows = [analyze(w, kind="dense", **PLAIN) for w in layers.values()]
    assert [row["status"] for row in rows] == ["failed_fit", "too_small", "ok"]
    assert summarize(rows)["ww_mean_alpha"] == pytest.approx(float(theirs["alpha"].mean()), rel=1e-9)


def test_live_tied_weights_are_two_rows(watch):
    weight = normal(90, 40)
    theirs = watch({"a": weight, "b": weight})
    assert len(theirs) == 2
    assert theirs["alpha"].iloc[0] == theirs["alpha"].iloc[1]


@pytest.mark.slow
def test_live_randomised_columns_agree_in_law(watch):
    """The two draw other shuffles: eight of each, and the means must meet within their errors."""
    layers = {"a": heavy(120, 104), "b": heavy(80, 60, seed=5), "c": heavy(16, 12, 3, 3)}
    theirs = pd.concat([watch(layers, randomize=True) for _ in range(8)])
    for name, weight in layers.items():
        kind = "dense" if weight.ndim == 2 else "conv2d"
        ours = pd.DataFrame(
            [analyze(weight, kind=kind, trust=False, seed=seed, keep_eigenvalues=False) for seed in range(8)]
        )
        drawn = theirs[theirs["longname"] == name]
        for column in (
            "rand_distance",
            "ww_softrank",
            "max_rand_eval",
            "num_traps",
            "ww_maxdist",
            "rand_sigma_mp",
            "rand_bulk_max",
        ):
            a, b = ours[column].astype(float), drawn[column].astype(float)
            error = np.sqrt((a.var() + b.var()) / 8) + 1e-9 * abs(a.mean())
            assert abs(a.mean() - b.mean()) <= 4.5 * error + 1e-12, (name, column)
