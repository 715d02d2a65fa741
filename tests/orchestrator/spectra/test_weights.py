"""Weights in files of every layout, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from counted import Counted
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from scalespec.orchestrator.spectra import weights
from scalespec.orchestrator.spectra.tensors import TensorFile, WeightsError
from scalespec.orchestrator.spectra.weights import layer_kind, layer_name, read, references, step_of
from scalespec.trainables.checkpoints import local_run
from scalespec.trainables.files import LocalFiles


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


MODEL = {
    "wte.weight": normal(50, 16),
    "h.0.attn.c_attn.weight": normal(16, 48),
    "h.0.attn.c_attn.bias": normal(48),
    "h.0.ln.weight": normal(16),
    "conv.weight": normal(6, 3, 3, 3),
    "steps": np.array([3, 4], dtype=np.int64),
}
MATRICES = {"wte.weight", "h.0.attn.c_attn.weight", "conv.weight"}


def test_a_safetensors_file_gives_its_matrices_from_the_header(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(MODEL, file)
    found = {ref.layer: ref for ref in references(file)}
    assert set(found) == MATRICES
    assert (found["wte.weight"].kind, found["conv.weight"].kind) == ("embedding", "conv2d")
    assert found["wte.weight"].shape == (50, 16)
    assert found["wte.weight"].nbytes == 50 * 16 * 4
    for name, ref in found.items():
        np.testing.assert_array_equal(read(ref), MODEL[name])


def test_a_list_costs_the_header_and_a_tensor_its_own_bytes(tmp_path):
    save_file(MODEL, tmp_path / "model.safetensors")
    files = Counted(LocalFiles(tmp_path))
    file = TensorFile(files, "model.safetensors")
    header = 8 + int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert len(list(weights.layers(file.tensors))) == 3
    assert files.bytes_read == header + 1  # and one byte from its end: is it whole?
    file.read("wte.weight")
    assert files.bytes_read == header + 1 + MODEL["wte.weight"].nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_type_is_read_exactly(tmp_path, dtype):
    tensor = torch.randn(7, 5).to(dtype)
    save_torch({"w.weight": tensor}, tmp_path / "m.safetensors")
    (ref,) = references(tmp_path / "m.safetensors")
    found = read(ref)
    assert found.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_array_equal(found, tensor.double().numpy())


def test_keras_kernels_are_turned(tmp_path):
    conv, dense, line = normal(3, 5, 2, 8), normal(20, 10), normal(4, 6, 9)
    save_file(
        {"conv1.kernel": conv, "dense1.kernel": dense, "line.kernel": line, "conv1.bias": normal(8)},
        tmp_path / "m.safetensors",
    )
    found = {ref.layer: ref for ref in references(tmp_path / "m.safetensors")}
    assert found["conv1.kernel"].shape == read(found["conv1.kernel"]).shape == (8, 2, 3, 5)
    np.testing.assert_array_equal(read(found["conv1.kernel"])[7, 1], conv[:, :, 1, 7])
    np.testing.assert_array_equal(read(found["line.kernel"])[8, 5], line[:, 5, 8])
    np.testing.assert_array_equal(read(found["dense1.kernel"]), dense)
    assert [found[n].kind for n in ("conv1.kernel", "line.kernel", "dense1.kernel")] == ["conv2d", "conv1d", "dense"]


def sharded(folder):
    folder.mkdir(exist_ok=True)
    names = list(MODEL)
    places = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: MODEL[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_shards_are_one_checkpoint(tmp_path):
    folder = sharded(tmp_path / "hf")
    assert {ref.layer for ref in references(folder)} == MATRICES
    (folder / "model.safetensors.index.json").unlink()
    assert {ref.layer for ref in references(folder)} == MATRICES


def test_a_missing_shard_is_named(tmp_path):
    folder = sharded(tmp_path / "hf")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="model-00002-of-00002"):
        references(folder)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../secret.safetensors"}}'])
def test_an_index_that_is_none_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=r"index\.json"):
        references(tmp_path)


def test_a_hugging_face_folder_is_its_model_whatever_lies_beside(tmp_path):
    save_file(MODEL, tmp_path / "model.safetensors")
    save_file({"lora.weight": normal(4, 4)}, tmp_path / "adapter.safetensors")
    (tmp_path / "config.json").write_text("{}")
    torch.save({"exp_avg": torch.zeros(3, 3)}, tmp_path / "optimizer.pt")
    assert {ref.layer for ref in references(tmp_path)} == MATRICES


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-00001234", 1234),
        ("b_epoch07.safetensors", 7),
        ("checkpoint-500", 500),
        ("ckpt_20.pt", 20),
        ("epoch=3-step=400.ckpt", 400),
        ("0010", 10),
        ("model-00001-of-00002.safetensors", None),
        ("gpt2.safetensors", None),
        ("resnet20-12fca82f.safetensors", None),
    ],
)
def test_steps_come_from_names(tmp_path, name, step):
    assert step_of(tmp_path / name) == step


def test_folders_and_files_of_several_steps_are_a_series_in_order(tmp_path):
    for step in (200, 1000, 0):
        (tmp_path / "a" / f"step-{step:08d}").mkdir(parents=True)
        save_file(MODEL, tmp_path / "a" / f"step-{step:08d}" / "model.safetensors")
    (tmp_path / "b").mkdir()
    for epoch in (10, 2):
        save_file(MODEL, tmp_path / "b" / f"net_epoch{epoch}.safetensors")
    assert [ref.step for ref in references(tmp_path / "a")] == [0] * 3 + [200] * 3 + [1000] * 3
    assert [ref.step for ref in references(tmp_path / "b")] == [2] * 3 + [10] * 3
    assert len({ref.source for ref in references(tmp_path / "a")}) == 3


def test_files_without_and_with_equal_steps_are_not_guessed_at(tmp_path):
    for name in ("one", "two"):
        save_file(MODEL, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"one\.safetensors.*step-"):
        references(tmp_path)
    (tmp_path / "same").mkdir()
    for name in ("a_epoch1", "b_epoch1"):
        save_file(MODEL, tmp_path / "same" / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="both step 1"):
        references(tmp_path / "same")


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused_before_it_is_read(tmp_path, keep):
    file = tmp_path / "m.safetensors"
    save_file(MODEL, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"m\.safetensors"):
        references(file)


def test_a_file_that_shrinks_after_it_was_listed_is_an_error_not_a_crash(tmp_path):
    file = tmp_path / "m.safetensors"
    save_file(MODEL, file)
    refs = references(file)
    file.write_bytes(file.read_bytes()[:-4])
    for ref in refs:
        with pytest.raises(WeightsError, match="truncated"):
            read(ref)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1]",
        b'{"w": {"dtype": "F32", "shape": [2, 2]}}',
        b'{"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}',
        b'{"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}}',
        b'{"w": {"dtype": "F32", "shape": "no", "data_offsets": [0, 16]}}',
        b'{"w": {"dtype": 7, "shape": [2, 2], "data_offsets": "xx"}}',
        b'{"w": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}',
        b'{"w": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}',
        b"[" * 100_000,
    ],
)
def test_a_forged_header_is_refused(tmp_path, header):
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(WeightsError, match=r"m\.safetensors"):
        references(file)


def test_torch_files_open_through_the_restricted_loader(tmp_path):
    state = {f"module.{name}": torch.from_numpy(value) for name, value in MODEL.items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "nested.pth")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("plain.pt", "nested.pth", "old.bin"):
        found = {ref.layer: ref for ref in references(tmp_path / name)}
        assert set(found) == MATRICES
        np.testing.assert_array_equal(read(found["wte.weight"]), MODEL["wte.weight"])


def test_a_bfloat16_torch_file_becomes_float32(tmp_path):
    tensor = torch.randn(6, 4, dtype=torch.bfloat16)
    torch.save({"w.weight": tensor}, tmp_path / "m.pt")
    (ref,) = references(tmp_path / "m.pt")
    np.testing.assert_array_equal(read(ref), tensor.float().numpy())


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "model.pickle", "model.bin"])
def test_pickles_are_refused_unopened_with_the_way_to_convert_them(tmp_path, name):
    trap = Trap(tmp_path / "executed")
    if name.endswith(".pt"):
        torch.save({"w": trap}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"w": trap}))
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(WeightsError, match="save_file"):
            references(path)
    assert not (tmp_path / "executed").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(4, 4), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="save_file"):
        references(tmp_path / "model.pt")


def test_a_damaged_torch_file_is_an_error(tmp_path):
    torch.save({"w.weight": torch.zeros(30, 30)}, tmp_path / "m.pt")
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:700])
    with pytest.raises(WeightsError, match=r"m\.pt"):
        references(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.onnx", "model.npz"])
def test_other_formats_are_refused_with_the_way_on(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(WeightsError, match="safetensors"):
            references(path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(WeightsError, match="no such"):
        references(tmp_path / "absent")
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        references(tmp_path)
    save_file({"b.bias": normal(4)}, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="two to four dimensions"):
        references(tmp_path / "m.safetensors")


def test_wrappers_prefixes_are_dropped():
    assert layer_name("module._orig_mod.h.0.weight") == "h.0.weight"
    assert layer_name("_orig_mod.module.h.0.weight") == "h.0.weight"
    assert layer_name("modules.0.weight") == "modules.0.weight"


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("a.weight", (4, 3), "dense"),
        ("embeddings.word_embeddings.weight", (50, 8), "embedding"),
        ("transformer.wpe.weight", (50, 8), "embedding"),
        ("conv.weight", (4, 3, 3, 3), "conv2d"),
        ("conv.weight", (4, 3, 5), "conv1d"),
        ("mlp.experts.gate_up_proj", (8, 4, 6), "dense"),
        ("attn.in_proj_weight", (12, 4), "dense"),
        ("lstm.weight_ih_l0", (12, 4), "dense"),
        ("ln.weight", (4,), None),
        ("attn.bias", (1, 1, 8, 8), None),
        ("attn.masked_bias", (8, 8), None),
        ("bn.running_mean", (8, 8), None),
    ],
)
def test_kinds_from_names_and_shapes(name, shape, kind):
    assert layer_kind(name, shape) == kind


def test_weightwatchers_view_leaves_out_what_is_not_called_weight(tmp_path):
    save_file({"a.weight": normal(8, 4), "attn.in_proj_weight": normal(12, 4)}, tmp_path / "m.safetensors")
    assert len(references(tmp_path / "m.safetensors")) == 2
    assert [ref.layer for ref in references(tmp_path / "m.safetensors", every=False)] == ["a.weight"]


def test_real_checkpoints(shared):
    resnet = references(shared / "data" / "weights" / "resnet20-12fca82f.safetensors")
    assert sum(ref.kind == "conv2d" for ref in resnet) == 19
    epochs = references(shared / "data" / "weights" / "mnist_cnn_epochs")
    assert sorted({ref.step for ref in epochs}) == [1, 2, 3, 4, 5, 6, 8, 10, 15, 20]
    assert {read(ref).shape for ref in epochs if ref.layer == "conv2.kernel"} == {(4, 2, 3, 3)}


def test_a_type_that_needs_scales_is_not_listed_and_not_read(tmp_path):
    save_torch(
        {"w.weight": torch.randn(8, 8).to(torch.float8_e4m3fn), "v.weight": torch.randn(8, 8)},
        tmp_path / "m.safetensors",
    )
    (ref,) = references(tmp_path / "m.safetensors")
    assert ref.layer == "v.weight"
    with pytest.raises(WeightsError, match="F8_E4M3"):
        weights.open_file(tmp_path / "m.safetensors").read("w.weight")


def test_a_tensor_of_a_torch_file_that_is_larger_than_the_file_is_refused(tmp_path):
    """Reading it would take all memory: 149 GiB from a file of 1.5 kB."""
    torch.save({"w.weight": torch.zeros(1).expand(200_000, 200_000)}, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="larger than what is stored"):
        references(tmp_path / "m.pt")


def committed(tmp_path):
    run = local_run(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/spec.json").write_text("{}")
    for step in (0, 4):
        run.save_weights(step, step, 0.0, {"a.weight": torch.ones(8, 4), "b.weight": torch.full((6, 6), 2.0)}, {})
    return run


def test_a_run_is_the_series_of_its_committed_checkpoints(tmp_path):
    run = committed(tmp_path)
    run.files.delete(f"{run.path}/checkpoints/step-00000004/manifest.json")
    assert [(ref.step, ref.layer) for ref in references(tmp_path / "run")] == [(0, "a.weight"), (0, "b.weight")]
    # a newer attempt with nothing to go on from begins anew
    local_run(tmp_path / "run").claim("session")
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        references(tmp_path / "run")


def test_an_altered_tensor_is_found_and_its_neighbours_are_read(tmp_path):
    run = committed(tmp_path)
    path = tmp_path / run.history().checkpoints[4] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    found = {ref.layer: ref for ref in references(path)}
    assert read(found["a.weight"]).sum() == 32
    with pytest.raises(WeightsError, match=r"altered: b\.weight does not match the manifest"):
        read(found["b.weight"])
    path.write_bytes(path.read_bytes().replace(b"a.weight", b"c.weight"))
    with pytest.raises(WeightsError, match="altered: its header"):
        references(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}', '{"files": {"model.safetensors": {}}}', '{"n": 1}'])
def test_a_foreign_manifest_beside_a_file_is_none(tmp_path, text):
    save_file(MODEL, tmp_path / "model.safetensors")
    (tmp_path / "manifest.json").write_text(text)
    assert {ref.layer for ref in references(tmp_path)} == MATRICES
    with pytest.raises(WeightsError, match="manifest is missing or damaged"):
        _ = TensorFile(LocalFiles(tmp_path), "model.safetensors", committed=True).tensors
