"""Splitting, identity, cost and the line of a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from scalespec.analysis import tables
from scalespec.analysis.spectral import NATIVE, WW, content_key, cost, layer_rows, parts, summarize

PLAIN = {"randomize": False, "trust": False}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer.h.0.attn.c_attn.weight", (32, 96)),
        ("blocks.0.attn.c_attn.weight", (96, 32)),
        ("attn.in_proj_weight", (96, 32)),
        ("attn.qkv.weight", (96, 32)),
        ("attn.Wqkv.weight", (96, 32)),
    ],
)
def test_fused_tensors_are_split_along_their_long_side(name, shape):
    weight = normal(*shape)
    q, k, v = parts(name, weight, "dense")
    assert [part.layer for part in (q, k, v)] == [f"{name}[{letter}]" for letter in "qkv"]
    assert {part.weight.shape for part in (q, k, v)} == {(32, 32)}
    axis = shape.index(96)
    np.testing.assert_array_equal(np.concatenate([q.weight, k.weight, v.weight], axis=axis), weight)


def test_grouped_queries_leave_smaller_keys_and_values():
    q, k, v = parts("attn.qkv_proj.weight", normal(48, 32), "dense")
    assert (q.weight.shape, k.weight.shape, v.weight.shape) == ((32, 32), (8, 32), (8, 32))


@pytest.mark.parametrize("name", ["attn.query_key_value.weight", "attn.c_proj.weight", "mlp.c_attn_like.weight"])
def test_other_tensors_stay_whole(name):
    assert [part.layer for part in parts(name, normal(96, 32), "dense")] == [name]


def test_a_fused_name_with_impossible_sides_stays_whole():
    assert len(parts("attn.qkv.weight", normal(200, 32), "dense")) == 1
    assert len(parts("attn.qkv.weight", normal(32, 32), "dense")) == 1


def test_experts_are_matrices_of_their_own():
    found = parts("mlp.experts.gate_up_proj", normal(4, 32, 64), "dense")
    assert [part.layer for part in found] == [f"mlp.experts.gate_up_proj[{e}]" for e in range(4)]
    assert {part.weight.shape for part in found} == {(32, 64)}


def test_native_rows_are_those_of_the_parts_and_weightwatchers_row_is_of_the_whole():
    weight, name = normal(192, 64), "attn.c_attn.weight"
    rows = layer_rows(name, weight, kind="dense", profile=NATIVE, init=weight * 2, previous=weight * 3, **PLAIN)
    assert [row["layer"] for row in rows] == [f"{name}[q]", f"{name}[k]", f"{name}[v]"]
    assert [row["rows"] for row in rows] == [64, 64, 64]
    assert {round(row["distance_from_init"], 6) for row in rows} == {0.5}
    assert {round(row["update_norm"], 6) for row in rows} == {round(2 / 3, 6)}
    (whole,) = layer_rows(name, weight, kind="dense", profile=WW, **PLAIN)
    assert (whole["layer"], whole["rows"]) == (name, 192)
    assert "content" not in whole


def test_unpooled_rows_name_their_kernel_position():
    rows = layer_rows("conv.weight", normal(16, 12, 3, 3), kind="conv2d", pool=False, **PLAIN)
    assert [row["layer"] for row in rows] == [f"conv.weight:{at}" for at in range(9)]


def test_content_tells_tensors_apart_by_values_shape_and_type():
    weight = normal(8, 6)
    assert content_key(weight) == content_key(weight.copy()) == content_key(np.asfortranarray(weight))
    others = [weight.reshape(6, 8), weight.astype(np.float64), weight + 1e-6]
    assert len({content_key(w) for w in (weight, *others)}) == 4


def test_tied_tensors_count_once_in_native_and_twice_in_weightwatchers_mean():
    weight, other = normal(100, 60), normal(100, 60, seed=1)
    rows = [row for w in (weight, weight, other) for row in layer_rows("w", w, kind="dense", profile=NATIVE, **PLAIN)]
    assert summarize(rows)["n_total"] == 2
    rows = [row for w in (weight, weight, other) for row in layer_rows("w", w, kind="dense", **PLAIN)]
    found = summarize(rows)
    assert found["n_total"] == 3
    assert found["ww_mean_alpha"] == pytest.approx(np.mean([row["alpha"] for row in rows]))


def row(alpha, trusted=None, why=None, status="ok", **more):
    fixed = {"profile": WW, "num_evals": 200, "alpha_hill": 2.0, "log_norm": 1.0}
    return fixed | {"alpha": alpha, "trusted": trusted, "why": why, "status": status} | more


def test_medians_are_over_layers_without_a_failed_check():
    rows = [
        row(2.0, True),
        row(3.0, True),
        row(4.0, None),
        row(40.0, False, "traps; rank loss"),
        row(1.0, False, "traps"),
        row(None, None, status="nan", num_evals=None),
    ]
    found = summarize(rows)
    assert (found["alpha_median"], found["n_used"], found["n_total"]) == (3.0, 3, 6)
    assert (found["alpha_q25"], found["alpha_q75"]) == (2.5, 3.5)
    assert found["ww_mean_alpha"] == 10.0
    assert found["reasons"] == "traps ×2; rank loss ×1; nan ×1"


def test_trimmed_mean_leaves_out_alpha_above_eight():
    assert summarize([row(2.0), row(4.0), row(9.0)])["alpha_trimmed"] == 3.0


def test_nothing_trusted_is_no_median_rather_than_a_number():
    found = summarize([row(9.0, False, "short tail"), row(8.5, False, "short tail")])
    assert (found["alpha_median"], found["alpha_trimmed"], found["n_used"]) == (None, None, 0)
    assert found["reasons"] == "short tail ×2"


def test_a_summary_fits_its_schema_also_from_a_table_with_missing_values():
    rows = layer_rows("w", normal(200, 150), kind="dense", profile=NATIVE)
    table = tables.from_rows([{"run_key": "r", "step": 3, **r} for r in rows], tables.SPECTRA)
    for given in (rows, tables.to_pandas(table).to_dict("records"), table.to_pylist()):
        line = {"run_key": "r", "step": 3, **summarize(given)}
        made = tables.from_rows([line], tables.SPECTRA_SUMMARY)
        assert made.column("n_total").to_pylist() == [1]
        assert made.column("alpha_hill_median").to_pylist()[0] == pytest.approx(rows[0]["alpha_hill"])
    assert summarize([])["n_total"] == 0


def test_cost_orders_layers_as_their_work_does():
    assert cost((3072, 768), "dense") == cost((768, 3072), "dense") > cost((768, 768), "dense")
    assert cost((64, 32), "dense") < cost((64, 32, 3, 3), "conv2d") < 9 * cost((64, 32), "dense") + 0.03
    assert cost((8, 512, 512), "dense") == pytest.approx(8 * cost((512, 512), "dense"))
    assert cost((512, 512), "dense", decompositions=1) < cost((512, 512), "dense")
    assert cost((10,), "dense") > 0


@pytest.mark.slow
def test_memory_bounds_what_a_layer_takes():
    """Measured in a process of its own: the peak over what the process had before."""
    import subprocess
    import sys

    script = """
import os, resource, numpy as np
from scalespec.analysis.spectral import analyze, memory
shape = (6000, 1200)
analyze(np.ones((40, 30), np.float32), kind="dense", trust=False)
weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
analyze(weight, kind="dense", trust=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, memory(shape, "dense"))
"""
    peak, bound = map(
        int, subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert peak <= bound
