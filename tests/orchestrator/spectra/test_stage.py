"""The spectral stage: what is computed once, in which order, and what becomes of files that cannot be read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from trained import Trained, trained

from scalespec.analysis import spectral, tables
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.spectra.stage import (
    Reference,
    Request,
    analyse_block,
    blocks,
    done_keys,
    references,
    run_stage,
)
from scalespec.orchestrator.store.folder import StudyStore, parquet_bytes
from scalespec.orchestrator.store.run_tables import checkpoints_table
from scalespec.trainables.commits import manifest
from scalespec.trainables.history import MANIFEST, WEIGHTS

SMALL: dict[str, Any] = {
    "grid": {"width": [16], "data_fraction": ["1", "1/2"], "seed": [0, 1]},
    "data": {"limit": 512},
    "train": {"checkpoints": 4},
}
LAYERS = {"hidden.weight": (16, 8), "inner.weight": (16, 16), "head.weight": (4, 16)}
WW = "ww-0.7.7"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Trained:
    """Two families of two runs each; not to be changed."""
    return trained(tmp_path_factory.mktemp("spectra") / "toy", **SMALL)


@pytest.fixture
def study(done, tmp_path) -> Trained:
    """A copy to do harm to."""
    shutil.copytree(done.store.root, tmp_path / "toy")
    return Trained(done.study, done.grid, StudyStore(str(tmp_path / "toy")))


def find(study: Trained, every: str = "checkpoint", profile: str = WW) -> list[Reference]:
    table = checkpoints_table(study.store, study.specs).to_pylist()
    return references(study.store, table, every, done_keys(study.store, profile))


def request_of(study: Trained, profile: str = WW) -> Request:
    return Request(study.store.root, profile, vectors=False)


def owned(refs: list[Reference]) -> list[tuple[str, int, str]]:
    return [(key, step, ref.layer) for ref in refs for key, step, _ in ref.owners]


def commit(study: Trained, run_key: str, step: int, weights: dict[str, torch.Tensor] | bytes) -> None:
    """Puts other weights under a valid manifest in place of a checkpoint."""
    data = weights if isinstance(weights, bytes) else safetensors.torch.save(weights)
    folder = path_of(study, run_key, step).rpartition("/")[0]
    facts = json.loads(study.store.files.read(f"{folder}/{MANIFEST}"))
    facts.pop("files"), facts.pop("schema_version")
    study.store.files.write(f"{folder}/{WEIGHTS}", data)
    tensors = {} if isinstance(weights, bytes) else {WEIGHTS: weights}
    study.store.files.write(f"{folder}/{MANIFEST}", manifest({WEIGHTS: data}, facts, tensors))


def path_of(study: Trained, run_key: str, step: int) -> str:
    return f"{study.store.run(run_key).history().checkpoints[step]}/{WEIGHTS}"


def weights_of(study: Trained, run_key: str, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(study.store.files.read(path_of(study, run_key, step)))


# -- references ----------------------------------------------------------------------------------------------------------


def test_every_layer_of_every_checkpoint_is_referred_to_once(done):
    table = checkpoints_table(done.store, done.specs).to_pylist()
    expected = Counter((row["run_key"], row["step"], layer) for row in table for layer in LAYERS)
    refs = find(done)
    assert Counter(owned(refs)) == expected
    assert {ref.layer: ref.shape for ref in refs} == LAYERS
    assert {ref.kind for ref in refs} == {"dense"}
    samples = {(row["run_key"], row["step"]): row["samples"] for row in table}
    assert all(samples[key, step] == count for ref in refs for key, step, count in ref.owners)


def test_the_trunk_of_a_family_is_computed_once(done):
    refs = find(done)
    for family in done.grid.families().values():
        keys = {spec.run_key for spec in family}
        first = [ref for ref in refs if {key for key, _, _ in ref.owners} & keys and ref.owners[0][1] == 0]
        assert len(first) == len(LAYERS)
        assert all({key for key, _, _ in ref.owners} == keys for ref in first)
    files = {row["sha256"] for row in checkpoints_table(done.store, done.specs).to_pylist()}
    assert len(files) * len(LAYERS) <= len(refs) < len(owned(refs))


def test_equal_weights_with_another_past_are_not_shared(study):
    """Distances depend on what a checkpoint is compared with; only its whole past makes two of them one."""
    first, second = (spec.run_key for spec in next(iter(study.grid.families().values())))
    last = study.store.run(first).checkpoint_steps()[-1]
    ends = study.store.run(second).checkpoint_steps()[-1]
    commit(study, second, ends, weights_of(study, first, last))
    refs = [ref for ref in find(study) if (first, last) in {owner[:2] for owner in ref.owners}]
    assert len(refs) == len(LAYERS)
    assert all(len(ref.owners) == 1 for ref in refs)


def test_a_reference_knows_its_start_and_its_predecessor(done):
    for ref in find(done):
        key, step, _ = ref.owners[0]
        steps = done.store.run(key).checkpoint_steps()
        assert ref.path == path_of(done, key, step)
        assert ref.init == path_of(done, key, 0)
        before = [s for s in steps if s < step]
        assert ref.previous == (path_of(done, key, before[-1]) if before else None)


def test_every_last_takes_the_final_weights_only(done):
    refs = find(done, "last")
    ends = {spec.run_key: done.store.run(spec.run_key).result()["steps"] for spec in done.specs}
    assert Counter(owned(refs)) == Counter((key, step, layer) for key, step in ends.items() for layer in LAYERS)


def test_nothing_is_referred_to_where_nothing_was_kept(tmp_path):
    store = StudyStore(str(tmp_path))
    assert references(store, [], "checkpoint", set()) == []
    assert done_keys(store, WW) == set()


@pytest.mark.parametrize("data", [b"", b"1234567", bytes(8) + b"[]", (2).to_bytes(8, "little") + b"[]", b"\xff" * 64])
def test_layers_are_read_from_the_first_checkpoint_that_can_be_read(study, data):
    before = owned(find(study))
    for spec in study.specs:
        study.store.files.write(path_of(study, spec.run_key, 0), data)
    assert sorted(owned(find(study))) == sorted(before)


# -- blocks --------------------------------------------------------------------------------------------------------------


def ref(side: int, at: int) -> Reference:
    return Reference(f"runs/r/{at % 3}", f"layer{at}", (side, side), "dense", None, None, (("r", at, 0),))


@given(st.lists(st.integers(1, 512), max_size=60), st.integers(1, 16))
def test_blocks_hold_every_reference_once_costliest_first(sides, cpus):
    refs = [ref(side, at) for at, side in enumerate(sides)]
    made = blocks(refs, cpus)
    assert Counter(r for block in made for r in block) == Counter(refs)
    assert all(made)
    costs = [sum(r.cost for r in block) for block in made]
    assert costs == sorted(costs, reverse=True)
    limit = sum(r.cost for r in refs) / (stage.BLOCKS_PER_CPU * cpus)
    assert all(cost <= limit * (1 + 1e-9) or len(block) == 1 for cost, block in zip(costs, made, strict=True))


def test_a_large_matrix_stands_alone_and_small_ones_together():
    made = blocks([ref(4096, 0), *(ref(16, at) for at in range(1, 101))], cpus=2)
    assert [r.shape for r in made[0]] == [(4096, 4096)]
    assert len(made) <= 4


# -- rows ----------------------------------------------------------------------------------------------------------------


def test_the_rows_are_those_of_the_layer_alone(done):
    refs = find(done)
    rows = analyse_block(refs, request_of(done))
    assert Counter((row["run_key"], row["step"], row["layer"]) for row in rows) == Counter(owned(refs))
    table = tables.from_rows(rows, tables.SPECTRA)
    assert table.num_rows == len(rows)
    for row in rows:
        weight = weights_of(done, row["run_key"], row["step"])[row["layer"]].numpy()
        values = np.linalg.svd(weight.astype(float), compute_uv=False) ** 2
        if row["status"] == "too_small":
            assert row["layer"] == "head.weight"
            continue
        assert row["status"] in ("ok", "failed_fit")
        assert row["spectral_norm"] == pytest.approx(values[0], rel=1e-6)
        assert row["log_norm"] == pytest.approx(np.log10(values.sum()), rel=1e-6)
        assert np.asarray(row["eigenvalues"]) == pytest.approx(values[::-1], rel=1e-4, abs=1e-9)


def test_weights_move_away_from_where_they_began(done):
    rows = analyse_block(find(done), request_of(done))
    for spec in done.specs:
        steps = done.store.run(spec.run_key).checkpoint_steps()
        mine = {row["step"]: row for row in rows if (row["run_key"], row["layer"]) == (spec.run_key, "inner.weight")}
        start = weights_of(done, spec.run_key, 0)["inner.weight"]
        assert mine[0].get("distance_from_init") in (None, 0.0)
        assert mine[0].get("update_norm") is None
        distances = [mine[step]["distance_from_init"] for step in steps[1:]]
        for step, distance in zip(steps[1:], distances, strict=True):
            moved = weights_of(done, spec.run_key, step)["inner.weight"] - start
            assert distance == pytest.approx(float(moved.norm() / start.norm()), rel=1e-5)
        assert distances[-1] > distances[0] > 0
        assert mine[steps[1]]["update_norm"] == pytest.approx(distances[0], rel=1e-6)


def test_a_row_does_not_depend_on_what_else_is_computed_with_it(done):
    refs = find(done)
    together = analyse_block(refs, request_of(done))
    alone = [row for r in refs for row in analyse_block([r], request_of(done))]
    assert tables.from_rows(together, tables.SPECTRA).equals(tables.from_rows(alone, tables.SPECTRA))


DAMAGES = {
    "truncated": (lambda data: data[:-8], "truncated: its header promises", set(LAYERS)),
    "altered": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "altered: ", {"inner.weight"}),
    "another header": (lambda data: data.replace(b"inner", b"outer"), "altered: its header", set(LAYERS)),
    "empty": (lambda data: b"", "not a safetensors file", set(LAYERS)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_error_rows_and_the_rest_is_computed(study, damage):
    harm, error, layers = DAMAGES[damage]
    refs = find(study)
    key, step, _ = refs[0].owners[0]
    path = path_of(study, key, step)
    study.store.files.write(path, harm(study.store.files.read(path)))
    rows = analyse_block(refs, request_of(study))
    assert Counter((row["run_key"], row["step"], row["layer"]) for row in rows) == Counter(owned(refs))
    bad = [row for row in rows if row["status"] == "unreadable"]
    assert {(row["layer"]) for row in bad} == layers
    assert {(row["run_key"], row["step"]) for row in bad} == {
        owner[:2] for r in refs if r.path == path for owner in r.owners
    }
    for row in bad:
        assert row["error"].startswith(f"WeightsError: {path}: {error}")
        assert (row["rows"], row["cols"]) == tuple(sorted(LAYERS[row["layer"]], reverse=True))
    tables.from_rows(rows, tables.SPECTRA)


def test_a_vanished_checkpoint_is_error_rows(study):
    refs = find(study)
    gone = refs[-1].path
    study.store.files.delete(gone.rpartition("/")[0])
    rows = analyse_block(refs, request_of(study))
    assert {row["status"] for row in rows if (row["run_key"], row["step"]) == refs[-1].owners[0][:2]} == {"unreadable"}
    assert sum(row["status"] == "unreadable" for row in rows) == sum(len(r.owners) for r in refs if r.path == gone)


def test_a_vanished_start_costs_the_distances_only(study):
    key = study.specs[0].run_key
    refs = [r for r in find(study, "last") if r.owners[0][0] == key]
    study.store.files.delete(path_of(study, key, 0).rpartition("/")[0])
    for row in analyse_block(refs, request_of(study)):
        assert row["status"] == "too_small" if row["layer"] == "head.weight" else row["spectral_norm"] > 0
        assert row.get("distance_from_init") is None


def test_a_foreign_file_under_a_valid_manifest_is_error_rows(study):
    key = study.specs[0].run_key
    refs = [r for r in find(study) if key in {owner[0] for owner in r.owners}]
    last = study.store.run(key).checkpoint_steps()[-1]
    commit(study, key, last, b"PK\x03\x04 no weights at all")
    rows = [row for row in analyse_block(refs, request_of(study)) if row["run_key"] == key]
    assert {row["status"] for row in rows if row["step"] == last} == {"unreadable"}
    assert "unreadable" not in {row["status"] for row in rows if row["step"] != last}
    # as the start of others it costs the distances only
    commit(study, key, 0, b"PK\x03\x04 no weights at all")
    later = [row for row in analyse_block(refs, request_of(study)) if row["run_key"] == key and 0 < row["step"] < last]
    assert later
    assert "unreadable" not in {row["status"] for row in later}
    assert all(row.get("distance_from_init") is None for row in later)


def test_bad_weights_have_a_status_each(study):
    key = study.specs[0].run_key
    refs = [r for r in find(study, "last") if r.owners[0][0] == key]
    step = refs[0].owners[0][1]
    weights = weights_of(study, key, step)
    weights["hidden.weight"][0, 0] = torch.nan
    weights["inner.weight"] = torch.zeros(16, 16)
    del weights["head.weight"]
    commit(study, key, step, weights)
    rows = {row["layer"]: row for row in analyse_block(refs, request_of(study))}
    assert {layer: row["status"] for layer, row in rows.items()} == {
        "hidden.weight": "nan",
        "inner.weight": "zero",
        "head.weight": "unreadable",
    }
    assert "head.weight" in rows["head.weight"]["error"]
    table = tables.from_rows(rows.values(), tables.SPECTRA)
    (summary,) = stage.summary_table(table).to_pylist()
    assert (summary["n_used"], summary["n_total"], summary["alpha_median"]) == (0, 3, None)


# -- the stage on Ray Data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(done, ray_cluster, tmp_path_factory) -> tuple[Trained, int]:
    """All spectra of a study, by Ray Data; not to be changed."""
    root = tmp_path_factory.mktemp("computed") / "toy"
    shutil.copytree(done.store.root, root)
    study = Trained(done.study, done.grid, StudyStore(str(root)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "HERE_S", 0.0)
        patch.setattr(stage, "_here", None)
        return study, run_stage(study.store, find(study), request_of(study), ray_cluster.cpus)


@pytest.mark.ray
def test_the_stage_gives_the_rows_of_its_blocks(computed, done):
    study, count = computed
    rows = stage.stored(study.store)
    expected = tables.from_rows(analyse_block(find(done), request_of(done)), tables.SPECTRA)
    assert count == rows.num_rows == expected.num_rows
    assert tables.sorted_by_key(rows, "spectra").equals(tables.sorted_by_key(expected, "spectra"))


@pytest.mark.ray
def test_a_second_pass_computes_nothing(computed):
    study, _ = computed
    before = study.store.files.names("spectra")
    assert find(study) == []
    assert run_stage(study.store, [], request_of(study), 2) == 0
    assert study.store.files.names("spectra") == before
    # another profile is another computation
    assert len(owned(find(study, profile="native"))) == stage.stored(study.store).num_rows


@pytest.mark.ray
def test_a_later_pass_computes_what_is_missing_and_replaces_what_was_unreadable(computed, tmp_path):
    source, count = computed
    shutil.copytree(source.store.root, tmp_path / "toy")
    study = Trained(source.study, source.grid, StudyStore(str(tmp_path / "toy")))
    whole = tables.sorted_by_key(stage.stored(study.store), "spectra")
    first = next(iter(study.grid.families().values()))[0].run_key
    rows = whole.to_pylist()
    unread = [
        {"run_key": r["run_key"], "step": r["step"], "layer": r["layer"], "profile": WW, "kind": "dense"}
        | {"rows": r["rows"], "cols": r["cols"], "status": "unreadable", "error": "OSError: away"}
        for r in rows
        if r["run_key"] == first
    ]
    kept = [r for r in rows if r["run_key"] not in (first, study.specs[-1].run_key)]
    study.store.files.delete("spectra")
    for at, part in enumerate((unread, kept)):
        table = tables.from_rows(part, tables.SPECTRA)
        study.store.files.write(f"spectra/part-{at}.parquet", parquet_bytes(table))
    refs = find(study)
    missing = sorted((r["run_key"], r["step"], r["layer"]) for r in rows if r not in kept)
    assert sorted(owned(refs)) == missing
    assert run_stage(study.store, refs, request_of(study), 2) == len(missing) < count
    again = stage.stored(study.store)
    keys = list(zip(*(again[name].to_pylist() for name in tables.KEYS["spectra"]), strict=True))
    assert len(set(keys)) == len(keys) == count
    # the seed of a shuffle is that of the step, so a row does not depend on the pass that made it
    assert tables.sorted_by_key(again, "spectra").equals(whole)


def test_little_work_is_done_here_with_the_same_rows(study, done, monkeypatch):
    monkeypatch.setattr(stage, "_on_ray", None)
    refs = find(study)
    assert run_stage(study.store, refs, request_of(study), 2) == len(owned(refs))
    rows = tables.sorted_by_key(stage.stored(study.store), "spectra")
    expected = tables.from_rows(analyse_block(find(done), request_of(done)), tables.SPECTRA)
    assert rows.equals(tables.sorted_by_key(expected, "spectra"))
    assert (
        sum(ref.cost for ref in refs) <= stage.HERE_S < Reference("p", "l", (4096, 4096), "dense", None, None, ()).cost
    )


@pytest.mark.ray
def test_the_stage_survives_what_lies_in_the_folder(study, ray_cluster, monkeypatch):
    monkeypatch.setattr(stage, "HERE_S", 0.0)
    key = study.specs[0].run_key
    refs = [r for r in find(study) if key in {owner[0] for owner in r.owners}]
    last = study.store.run(key).checkpoint_steps()[-1]
    commit(study, key, last, b"no weights at all")
    shutil.rmtree(Path(study.store.root, refs[0].path).parent)
    rows = run_stage(study.store, refs, request_of(study), ray_cluster.cpus)
    assert rows == len(owned(refs))
    found = Counter(row["status"] for row in stage.stored(study.store).to_pylist())
    assert found["unreadable"] >= 2 * len(LAYERS)
    assert found["ok"] + found["failed_fit"] > 0


def test_native_splits_what_is_fused_and_counts_it_done(study):
    """A row of `name[q]` says that the tensor `name` is done."""
    key = study.specs[0].run_key
    for step in study.store.run(key).checkpoint_steps():
        commit(study, key, step, {"c_attn.weight": torch.randn(48, 16, generator=torch.Generator().manual_seed(step))})
    refs = [r for r in find(study, profile="native") if r.owners[0][0] == key]
    assert {r.layer for r in refs} == {"c_attn.weight"}
    rows = analyse_block(refs, request_of(study, "native"))
    assert {row["layer"] for row in rows} == {f"c_attn.weight[{name}]" for name in "qkv"}
    assert all(row["spectral_norm"] > 0 for row in rows)
    study.store.files.write("spectra/part-1.parquet", parquet_bytes(tables.from_rows(rows, tables.SPECTRA)))
    assert key not in {owner[0] for r in find(study, profile="native") for owner in r.owners}


def test_summaries_are_one_line_a_checkpoint(done):
    rows = analyse_block(find(done), request_of(done))
    table = stage.summary_table(tables.from_rows(rows, tables.SPECTRA))
    expected = {(row["run_key"], row["step"]) for row in checkpoints_table(done.store, done.specs).to_pylist()}
    lines = table.to_pylist()
    assert {(line["run_key"], line["step"]) for line in lines} == expected
    assert len(lines) == len(expected)
    for line in lines:
        layers = [r for r in rows if (r["run_key"], r["step"]) == (line["run_key"], line["step"])]
        assert line["n_total"] == len(LAYERS)
        assert line["mean_log_norm"] == pytest.approx(spectral.summarize(layers)["mean_log_norm"])
    # a mean depends on the order of its terms in the last digit, and parts come in any order
    assert stage.summary_table(tables.from_rows(rows[::-1], tables.SPECTRA)).equals(table)


def test_a_damaged_part_is_passed_over_and_its_rows_are_computed_again(study, caplog):
    stage.run_stage(study.store, find(study), request_of(study), cpus=1)
    whole = stage.stored(study.store)
    (part,) = [name for name in study.store.files.names("spectra") if name.endswith(".parquet")]
    data = study.store.files.read(f"spectra/{part}")
    study.store.files.write(f"spectra/{part}", data[: len(data) // 2])
    assert stage.stored(study.store).num_rows == 0
    assert f"spectra/{part}" in caplog.text
    stage.run_stage(study.store, find(study), request_of(study), cpus=1)
    assert tables.sorted_by_key(stage.stored(study.store), "spectra").equals(tables.sorted_by_key(whole, "spectra"))


def test_rows_of_an_older_minor_version_are_still_read(study):
    rows = analyse_block(find(study, "last"), request_of(study))
    table = tables.from_rows(rows, tables.SPECTRA).drop_columns(["alpha_farms", "content"])
    study.store.files.write("spectra/part-1.parquet", parquet_bytes(table))
    study.store.files.write("spectra/notes.txt", b"not a part")
    assert stage.stored(study.store).schema == tables.SPECTRA
    assert len(done_keys(study.store, WW)) == len(rows)
