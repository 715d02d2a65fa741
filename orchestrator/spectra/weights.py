"""Weights in files: what tensors a path holds, from headers alone, and one tensor at a time.

A path is a safetensors file, a sharded one with its index, a Hugging Face folder, a torch file that loads without running code,
a run of a study, or a folder of several of these as a series over steps. Nothing is read by unpickling.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalespec.orchestrator.spectra.tensors import DTYPES, Stored, TensorFile, WeightsError
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.files import LocalFiles

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib")
OTHER_SUFFIXES = (".h5", ".hdf5", ".keras", ".onnx", ".npz", ".npy", ".msgpack", ".gguf")

STEP = re.compile(r"(?:step|epoch|checkpoint|ckpt|iter|iteration)s?[-_=]?0*(\d+)(?!.*(?:step|epoch))", re.IGNORECASE)
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
"""What DDP, torch.compile, FSDP and activation checkpointing put into a name."""

NESTED = ("state_dict", "model_state_dict", "model", "module", "weights", "params", "net")
"""Keys under which training scripts keep the weights, in the order in which they are tried."""

EMBEDDING = re.compile(r"embed|(?:^|\.)(?:wte|wpe)\.")
EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
NOT_WEIGHTS = re.compile(
    r"(?:^|[._])(?:bias|masked_bias|mask|running_mean|running_var|position_ids|inv_freq|rotary|buffer)[\w]*$"
)


@dataclass(frozen=True)
class LayerRef:
    """One tensor with at least one matrix, found in a header; reading it is `read`."""

    file: str
    tensor: str
    """Its name in the file."""
    layer: str
    """Its name in the model, without what DDP or torch.compile put before it."""
    shape: tuple[int, ...]
    """As `read` gives it."""
    dtype: str
    """safetensors name of the stored type."""
    kind: str
    """dense, conv1d, conv2d or embedding; a 3-D dense tensor holds one matrix an expert."""
    nbytes: int
    """As stored."""
    step: int = 0
    """Of the checkpoint, from its name; 0 for a single one."""
    source: str = ""
    """The checkpoint: the file, or the folder of a sharded one."""


@dataclass(frozen=True)
class Layer:
    """One tensor with at least one matrix, as `oriented` gives it."""

    tensor: str
    shape: tuple[int, ...]
    kind: str
    stored: Stored


def layers(tensors: Mapping[str, Stored]) -> Iterator[Layer]:
    """The weight tensors among those of a header, as stored."""
    for name, stored in tensors.items():
        shape = oriented_shape(stored.shape, name)
        kind = layer_kind(name, shape)
        if kind is not None and stored.dtype in DTYPES:
            yield Layer(name, shape, kind, stored)


def references(path: str | Path, *, every: bool = True) -> list[LayerRef]:
    """Every weight tensor under `path` that holds a matrix, checkpoint by checkpoint in order of step, then as stored.

    every=False: only what WeightWatcher sees, tensors called `*.weight` (and Keras kernels).
    Raises WeightsError for what is missing, truncated, foreign or would have to be unpickled.
    """
    found = [
        replace(ref, step=step, source=str(checkpoint))
        for step, checkpoint in checkpoints(Path(path))
        for ref in _checkpoint(checkpoint)
        if every or ref.tensor.endswith((".weight", ".kernel"))
    ]
    if not found:
        raise WeightsError(f"{path}: no tensor with two to four dimensions; is this a checkpoint of a model?")
    return found


def checkpoints(path: Path) -> list[tuple[int, Path]]:
    """(step, file or folder) of the checkpoints under `path`: one, or a series told apart by the steps in their names."""
    if path.is_file():
        return [(step_of(path) or 0, path)]
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder")
    if run := checkpoints_of_run(path):
        return run
    if _index(path) or _single(path):
        return [(step_of(path) or 0, path)]
    files = _weight_files(path)
    if files and all(SHARD.search(file.stem) for file in files):
        return [(step_of(path) or 0, path)]
    members = files or [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _holds_weights(folder)]
    if not members:
        raise WeightsError(_nothing(path))
    if len(members) == 1:
        return [(step_of(members[0]) or 0, members[0])]
    steps = [step_of(member) for member in members]
    unnamed = [member.name for member, step in zip(members, steps) if step is None]
    if unnamed:
        raise WeightsError(
            f"{path}: several checkpoints, but no step in the name {unnamed[0]}; name them like step-00001234"
        )
    series: dict[int, Path] = {}
    for step, member in zip(steps, members):
        assert step is not None
        if step in series:
            raise WeightsError(
                f"{path}: {series[step].name} and {member.name} are both step {step}; keep one of them here"
            )
        series[step] = member
    return sorted(series.items())


def checkpoints_of_run(path: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the committed checkpoints of a study's run; none where the folder is something else."""
    if not (path / "spec.json").is_file():
        return []
    return [(step, path / name) for step, name in RunFolder(LocalFiles(path), ".").history().checkpoints.items()]


def step_of(path: Path) -> int | None:
    """The step in a name such as step-00001234, checkpoint-500, b_epoch07 or 1200; None where there is none."""
    _, match = _stem_and_step(path)
    return int(match.group(1)) if match else None


def without_step(path: Path) -> str:
    """The name with `*` for the digits of its step: equal for the checkpoints of one run."""
    stem, match = _stem_and_step(path)
    return path.name if match is None else f"{stem[: match.start(1)].rstrip('0')}*{stem[match.end(1) :]}{path.suffix}"


def _stem_and_step(path: Path) -> tuple[str, re.Match[str] | None]:
    """The name without shard and suffix, and where its step stands."""
    stem = SHARD.sub("", path.stem if path.suffix in SUFFIXES else path.name)
    return stem, STEP.search(stem) or re.fullmatch(r"0*(\d+)", stem)


def read(ref: LayerRef) -> NDArray[Any]:
    """The tensor as float32 (float64 if stored so); convolutions as out × in × kernel. Raises WeightsError."""
    file = Path(ref.file)
    array = open_file(file).read(ref.tensor) if file.suffix == ".safetensors" else _read_torch(file, ref.tensor)
    return oriented(array, ref.tensor)


def open_file(file: Path) -> TensorFile:
    """A safetensors file on this machine's disk."""
    return TensorFile(LocalFiles(file.parent), file.name, shown=str(file))


def _checkpoint(path: Path) -> Iterator[LayerRef]:
    if path.is_file():
        yield from _file(path)
        return
    index = _index(path)
    if index is None:
        single = _single(path)
        for file in [single] if single else _weight_files(path):
            yield from _file(file)
        return
    for name in _index_files(index):
        file = path / name
        if not file.is_file():
            raise WeightsError(f"{index}: the shard {name} is missing; download it again or remove the index")
        yield from _file(file)


def _file(file: Path) -> Iterator[LayerRef]:
    for found in layers(open_file(file).tensors if file.suffix == ".safetensors" else _torch_header(file)):
        name, stored = layer_name(found.tensor), found.stored
        yield LayerRef(str(file), found.tensor, name, found.shape, stored.dtype, found.kind, stored.nbytes)


def layer_name(tensor: str) -> str:
    """The tensor's name without what wrappers put into it."""
    return WRAPPERS.sub("", tensor)


def layer_kind(tensor: str, shape: tuple[int, ...]) -> str | None:
    """What a tensor of this name and shape (as `read` gives it) is taken for; None where it holds no weight matrix."""
    if len(shape) not in (2, 3, 4) or 0 in shape or NOT_WEIGHTS.search(tensor):
        return None
    if len(shape) == 4:
        return "conv2d"
    if len(shape) == 3:
        return "dense" if EXPERTS.search(tensor) else "conv1d"
    return "embedding" if EMBEDDING.search(tensor) else "dense"


def oriented_shape(shape: tuple[int, ...], tensor: str) -> tuple[int, ...]:
    """The shape that `read` gives: Keras kernels turned from kernel × in × out, leading ones of a 3-D tensor dropped."""
    if tensor.endswith("kernel") and len(shape) in (3, 4):
        return (shape[-1], shape[-2], *shape[:-2])
    if len(shape) == 3 and shape[0] == 1:
        return tuple(size for at, size in enumerate(shape[1:]) if size > 1 or at)
    return shape


def oriented(array: NDArray[Any], tensor: str) -> NDArray[Any]:
    """A tensor as it is analysed; see `oriented_shape`."""
    if tensor.endswith("kernel") and array.ndim in (3, 4):
        return np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)))
    return array.reshape(oriented_shape(array.shape, tensor))


def _index(folder: Path) -> Path | None:
    return next((folder / name for name in INDEX_NAMES if (folder / name).is_file()), None)


def _single(folder: Path) -> Path | None:
    """The one file of a Hugging Face or study checkpoint, whatever lies beside it."""
    names = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _weight_files(folder: Path) -> list[Path]:
    """safetensors files, or else torch files."""
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
        if files:
            return files
    return []


def _holds_weights(folder: Path) -> bool:
    return bool(_index(folder) or _single(folder) or _weight_files(folder))


def _nothing(path: Path) -> str:
    for file in sorted(path.iterdir()):
        if file.suffix in PICKLE_SUFFIXES + OTHER_SUFFIXES:
            return _foreign(file)
    return f"{path}: no .safetensors or torch file here, nor in the folders below it"


def _index_files(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise WeightsError(f"{index}: not an index of shards (no weight_map)") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index}: the shard {name!r} is not a file name in the same folder")
    return names


def _torch_header(file: Path) -> dict[str, Stored]:
    names = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    return {
        name: Stored(tuple(tensor.shape), names.get(str(tensor.dtype), str(tensor.dtype)), 0, tensor.nbytes)
        for name, tensor in _torch_tensors(file).items()
    }


def _read_torch(file: Path, tensor: str) -> NDArray[Any]:
    import torch

    found = _torch_tensors(file).get(tensor)
    if found is None:
        raise WeightsError(f"{file}: no tensor {tensor}")
    dtype = torch.float64 if found.dtype == torch.float64 else torch.float32
    return found.detach().to(dtype).numpy().copy()  # type: ignore[no-any-return]


def _torch_tensors(file: Path) -> dict[str, Any]:
    """The weights in a torch file, loaded by the restricted unpickler that can build tensors and containers only."""
    import torch

    if file.suffix not in TORCH_SUFFIXES:
        raise WeightsError(_foreign(file))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise WeightsError(_foreign(file)) from None
        raise WeightsError(f"{file}: torch cannot read it ({type(error).__name__}); is it complete?") from None
    for candidate in (content, *(content.get(key) for key in NESTED if isinstance(content, Mapping))):
        if isinstance(candidate, Mapping):
            tensors = {str(name): value for name, value in candidate.items() if isinstance(value, torch.Tensor)}
            if any(value.ndim >= 2 for value in tensors.values()):
                return {name: _of_its_size(value, file, name) for name, value in tensors.items()}
    raise WeightsError(f"{file}: no state dict in it, nor under {', '.join(NESTED)}")


def _of_its_size(tensor: Any, file: Path, name: str) -> Any:
    """A small file can describe a tensor of any size by a stride of 0, and reading that would take all memory."""
    if not tensor.is_sparse and tensor.nbytes > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{file}: {name} is larger than what is stored of it; save it with .contiguous()")
    return tensor


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _foreign(file: Path) -> str:
    if file.suffix in PICKLE_SUFFIXES + TORCH_SUFFIXES:
        return (
            f"{file}: holds pickled Python objects, which can run code when loaded, so it is not opened. If you trust it, convert it "
            "once: model = torch.load(FILE, weights_only=False); safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    return f"{file}: {file.suffix or 'this'} is not read; save the weights with safetensors.numpy.save_file(arrays, 'model.safetensors')"
