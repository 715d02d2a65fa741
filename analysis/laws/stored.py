"""Laws on disk: `laws.json` for people and scripts, and beside it the draws, so that a law read back has the intervals it had."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scalespec.analysis import tables
from scalespec.analysis.laws.law import Array, Evidence, Law

_DIGEST = b"laws_sha256"


def digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """Of the content of `laws.json`, whatever its spaces: the evidence names the laws that it belongs to."""
    return hashlib.sha256(json.dumps(list(entries), sort_keys=True).encode()).hexdigest()


def evidence_table(laws: Sequence[Law]) -> pa.Table:
    """The evidence of the laws with the schema `tables.LAW_EVIDENCE`; of a law without any there are no rows."""
    parts = [part for law in laws if law.evidence is not None for part in _parts(law.id, law.evidence)]
    arrays = [
        pa.array(np.concatenate([part[at] for part in parts]) if parts else [], field.type)
        for at, field in enumerate(tables.LAW_EVIDENCE)
    ]
    metadata = {**tables.LAW_EVIDENCE.metadata, _DIGEST: digest([law.to_json() for law in laws])}
    return pa.Table.from_arrays(arrays, schema=tables.LAW_EVIDENCE.with_metadata(metadata))


def _parts(law: str, evidence: Evidence) -> Iterator[tuple[Any, ...]]:
    """Columns id, kind, name, at, key, value of one named array after another."""
    keys = np.array(evidence.keys, dtype=object)

    def part(kind: str, name: str, values: Array, key: Any = None) -> tuple[Any, ...]:
        size = len(values)
        labels = [np.full(size, label, dtype=object) for label in (law, kind, name)]
        of_point = key if key is not None and len(key) == size else np.full(size, None, dtype=object)
        return (*labels, np.arange(size), of_point, np.asarray(values, dtype=np.float64))

    yield part("widening", "", np.array([evidence.widening]))
    yield part("residual", "", evidence.residuals, keys)
    for kind, arrays in (("draw", evidence.draws), ("influence", evidence.influence), ("column", evidence.columns)):
        for name, values in arrays.items():
            yield part(kind, name, values, None if kind == "draw" else keys)


def laws_of(entries: Sequence[Mapping[str, Any]], evidence: pa.Table | None) -> list[Law]:
    """The laws of `laws.json` with their evidence. Evidence of other laws (a write that was cut off) is left out with a warning."""
    laws = [Law.from_json(entry) for entry in entries]
    if evidence is None:
        return laws
    if (evidence.schema.metadata or {}).get(_DIGEST, b"").decode() != digest(entries):
        warnings.warn(
            f"{tables.EVIDENCE_FILE} does not belong to laws.json, so laws have no draws and forecasts no intervals; `scalespec analyze` writes both anew",
            stacklevel=3,
        )
        return laws
    frame = tables.to_pandas(tables.conform(evidence, tables.LAW_EVIDENCE))
    found = {str(law): _evidence(rows) for law, rows in frame.groupby("id", sort=False)}
    return [replace(law, evidence=found.get(law.id)) for law in laws]


def _evidence(rows: pd.DataFrame) -> Evidence:
    arrays: dict[str, dict[str, Array]] = {"widening": {}, "residual": {}, "draw": {}, "influence": {}, "column": {}}
    keys: tuple[str, ...] = ()
    for kind, mine in rows.groupby("kind", sort=False):
        if kind == "residual":
            keys = tuple(map(str, mine["key"]))
        for name, part in mine.groupby("name", sort=False):
            arrays[str(kind)][str(name)] = part["value"].to_numpy(dtype=np.float64)
    return Evidence(
        draws=arrays["draw"],
        residuals=arrays["residual"].get("", np.empty(0)),
        keys=keys,
        widening=float(arrays["widening"][""][0]),
        influence=arrays["influence"],
        columns=arrays["column"],
    )
