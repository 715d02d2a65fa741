"""Commits: a set of whole files and, last, the manifest that vouches for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from scalespec.trainables.files import Files
from scalespec.trainables.history import MANIFEST


def manifest(
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> bytes:
    """The commit record of a set of files. `tensors`: those in a safetensors file, so that one read by range can be verified."""
    entries: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        entries[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name in tensors:
            header = data[: 8 + int.from_bytes(data[:8], "little")]
            entries[name]["header"] = {"bytes": len(header), "sha256": hashlib.sha256(header).hexdigest()}
            entries[name]["tensors"] = {key: _sha256(value) for key, value in sorted(tensors[name].items())}
    return json.dumps({"schema_version": 1, **facts, "files": entries}, indent=1).encode()


def _sha256(tensor: Tensor) -> str:
    """Of the bytes that safetensors stores."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def read_json(files: Files, path: str) -> Any:
    """The value in a JSON file; None where it is absent or damaged. Storage that does not answer is an OSError, not damage."""
    try:
        return json.loads(files.read(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def read_committed(files: Files, folder: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """The manifest and the files of a commit, or None where it is incomplete, truncated or altered.

    Raises OSError for storage that does not answer: taking that for damage would throw away what is committed.
    """
    facts = read_manifest(files, folder)
    if facts is None:
        return None
    contents: dict[str, bytes] = {}
    for name, entry in facts["files"].items():
        try:
            data = files.read(f"{folder}/{name}")
        except FileNotFoundError:
            return None
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            return None
        contents[name] = data
    return facts, contents


def read_manifest(files: Files, folder: str) -> dict[str, Any] | None:
    """A commit's manifest; None where it is absent, damaged or of another shape."""
    facts = read_json(files, f"{folder}/{MANIFEST}")
    entries = facts.get("files") if isinstance(facts, dict) else None
    if not isinstance(entries, dict):
        return None
    for name, entry in entries.items():
        if "/" in name or not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
            return None
        if not isinstance(entry.get("sha256"), str):
            return None
    return cast(dict[str, Any], facts)
