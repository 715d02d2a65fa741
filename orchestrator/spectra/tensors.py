"""One safetensors file over any storage: its header by range, one tensor by range, each verified where a manifest vouches for it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalespec.trainables.commits import read_manifest
from scalespec.trainables.files import Files

DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors names of what can be read; other dtypes are counters, masks or need scales that are elsewhere."""

HEADER_LIMIT = 100 * 2**20
"""safetensors itself refuses longer headers."""


class WeightsError(ValueError):
    """A path that holds no weights that can be read safely, with the remedy."""


@dataclass(frozen=True)
class Stored:
    """One tensor as a header describes it."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    """Byte in the file."""
    nbytes: int


class TensorFile:
    """A safetensors file. Nothing but the header and the tensors that are asked for is read."""

    def __init__(self, files: Files, path: str, *, shown: str = "", committed: bool = False) -> None:
        """`shown`: its name in messages. `committed`: refuse it without the manifest that lies beside a study's checkpoints."""
        self.files, self.path, self.shown, self.committed = files, path, shown or path, committed

    @functools.cached_property
    def _vouched(self) -> Mapping[str, Any]:
        """The manifest's entry of this file; empty for a file that has no manifest."""
        folder, _, name = self.path.rpartition("/")
        try:
            facts = read_manifest(self.files, folder)
        except OSError as error:
            raise WeightsError(f"{self.shown}: its manifest cannot be read ({error})") from error
        entry: Mapping[str, Any] | None = None if facts is None else facts["files"].get(name)
        if entry is None and self.committed:
            raise WeightsError(f"{self.shown}: its manifest is missing or damaged; restore both from a copy")
        return entry or {}

    @functools.cached_property
    def tensors(self) -> dict[str, Stored]:
        """What the file holds (https://huggingface.co/docs/safetensors), checked against its own end. Raises WeightsError."""
        raw = self._read(0, 8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 2 <= length <= HEADER_LIMIT:
            raise WeightsError(f"{self.shown}: not a safetensors file, or cut off in its header; copy it again")
        text = self._read(8, length)
        if len(text) != length:
            raise WeightsError(f"{self.shown}: not a safetensors file, or cut off in its header; copy it again")
        self._verify(raw + text, _text(self._vouched.get("header"), "sha256"), "its header")
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
            found = {name: _entry(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WeightsError(f"{self.shown}: not a safetensors file: its header cannot be parsed") from None
        end = max((entry.start + entry.nbytes for entry in found.values()), default=8 + length)
        if end > 8 + length and len(self._read(end - 1, 1)) != 1:
            raise WeightsError(f"{self.shown}: truncated: its header promises {end} bytes; copy it again")
        return found

    def read(self, tensor: str) -> NDArray[Any]:
        """A tensor as float32 (float64 if stored so). Raises WeightsError."""
        stored = self.tensors.get(tensor)
        if stored is None:
            raise WeightsError(f"{self.shown}: no tensor {tensor}")
        if stored.dtype not in DTYPES:
            raise WeightsError(
                f"{self.shown}: {tensor} is stored as {stored.dtype}, which needs scales; convert it to bf16"
            )
        # read, not mapped: a file that shrinks under a map ends the process
        data = self._read(stored.start, stored.nbytes)
        if len(data) != stored.nbytes:
            raise WeightsError(f"{self.shown}: truncated while {tensor} was read; copy it again")
        self._verify(data, _text(self._vouched.get("tensors"), tensor), tensor)
        array = np.frombuffer(data, DTYPES[stored.dtype])
        if stored.dtype == "BF16":
            wide = array.astype(np.uint32)
            wide <<= 16
            array = wide.view(np.float32)
        elif stored.dtype == "F16":
            array = array.astype(np.float32)
        return array.reshape(stored.shape)

    def _verify(self, data: bytes, sha256: str | None, what: str) -> None:
        if self.committed and sha256 is None:
            raise WeightsError(f"{self.shown}: its manifest does not vouch for {what}")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise WeightsError(f"{self.shown}: altered: {what} does not match the manifest; restore it from a copy")

    def _read(self, start: int, size: int) -> bytes:
        try:
            return self.files.read(self.path, start, size)
        except OSError as error:
            words = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise WeightsError(f"{self.shown}: {words}") from error


def _text(record: Any, name: str) -> str | None:
    found = record.get(name) if isinstance(record, dict) else None
    return found if isinstance(found, str) else None


def _entry(entry: Mapping[str, Any], data: int) -> Stored:
    start, stop = entry["data_offsets"]
    shape = tuple(int(side) for side in entry["shape"])
    dtype = entry["dtype"]
    if start < 0 or stop < start or min(shape, default=0) < 0:
        raise ValueError
    if dtype in DTYPES and stop - start != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise ValueError
    return Stored(shape, dtype, data + start, stop - start)
