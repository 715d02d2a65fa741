"""A finished study in a notebook: `load("results/quickstart").runs`, `.law("chinchilla").best(c=1e15)`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs

from scalespec.analysis import tables

if TYPE_CHECKING:  # the solver behind a law loads scipy, which who wants only tables (a worker) does not wait for
    from scalespec.analysis.fitted import FittedLaw
    from scalespec.analysis.laws.law import Law


@dataclass(frozen=True)
class Results:
    """The tables of one study as DataFrames; columns and units stand in `analysis.tables` and docs/contract.md."""

    runs: pd.DataFrame
    curves: pd.DataFrame
    checkpoints: pd.DataFrame
    spectra: pd.DataFrame
    spectra_summary: pd.DataFrame
    asks: pd.DataFrame
    """Which stage asked for which run, and why."""
    laws: pd.DataFrame
    """One row a parameter of a law; a law without parameters has one row."""
    entries: Sequence[dict[str, Any]] = field(default=(), repr=False)
    """`laws.json` as it is."""
    evidence: pa.Table | None = field(default=None, repr=False)
    """`laws.parquet`; None where there is none."""

    def law(self, name: str) -> FittedLaw:
        """The law of that id, with its draws and points: `chinchilla`, `frontier`, `n_opt`, `loss_of_n`, `loss_of_d`; in a study of
        further axes with the combination behind it, as in the column `id` of `laws`. Raises KeyError naming those there are.
        """
        from scalespec.analysis.fitted import FittedLaw

        if name not in self._laws:
            raise KeyError(f"{name}: no such law; the study has: {', '.join(self._laws) or 'none'}")
        law = self._laws[name]
        return FittedLaw.of(law, self._points(law))

    @cached_property
    def _laws(self) -> dict[str, Law]:
        from scalespec.analysis.laws import stored

        return {law.id: law for law in stored.laws_of(self.entries, self.evidence)}

    def _points(self, law: Law) -> pd.DataFrame | None:
        """The runs that the law was fitted to; None where they cannot be told."""
        from scalespec.analysis.laws.registry import form_of_law
        from scalespec.analysis.laws.study import C, D, N, combinations, results_only, usable

        suffix = law.id.removeprefix(law.id.partition("/")[0])
        whole = self._laws.get(f"chinchilla{suffix}")  # its target is the loss, that of a law of sizes is not
        if whole is None or whole.target not in self.runs:
            return None
        of_runs = whole if form_of_law(law).along_compute else law  # a law along compute names budgets, not runs
        if of_runs.evidence is not None:
            good = self.runs[self.runs["run_key"].astype(str).isin(of_runs.evidence.keys)]
        elif (part := dict(combinations(results_only(self.runs)[0])).get(suffix)) is not None:
            left = {one.key for one in law.excluded}
            good = usable(part, whole.target)[0]
            good = good[~good["run_key"].astype(str).isin(left)]
        else:
            return None
        columns = {"n": N, "d": D, "c": C, "loss": whole.target}
        points = pd.DataFrame({name: good[column].astype(float) for name, column in columns.items()})
        return points.set_axis(list(good["run_key"].astype(str)))


def load(study_dir: str | os.PathLike[str]) -> Results:
    """The tables in a study folder, on disk or behind a URI that pyarrow knows (s3://, gs://).

    Raises FileNotFoundError naming what is not there.
    """
    files = _Folder.of(study_dir)
    frames = {name: tables.to_pandas(files.parquet(f"tables/{name}.parquet")) for name in tables.TABLES}
    entries = json.loads(files.read("laws.json") or b"[]")
    evidence = files.parquet(tables.EVIDENCE_FILE) if files.has(tables.EVIDENCE_FILE) else None
    return Results(**frames, laws=laws_frame(entries), entries=entries, evidence=evidence)


@dataclass(frozen=True)
class _Folder:
    """A study folder to read from."""

    name: str
    fs: pafs.FileSystem
    root: str

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> _Folder:
        name = os.fspath(folder)
        if "://" in name:
            fs, root = pafs.FileSystem.from_uri(name)
        else:
            fs, root = pafs.LocalFileSystem(), str(Path(name).expanduser().absolute())
        return cls(name, fs, root.rstrip("/"))

    def has(self, path: str) -> bool:
        return bool(self.fs.get_file_info(f"{self.root}/{path}").type == pafs.FileType.File)

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        if not self.has(path):
            return None
        with self.fs.open_input_stream(f"{self.root}/{path}") as stream:
            return bytes(stream.read())

    def parquet(self, path: str) -> pa.Table:
        data = self.read(path)
        if data is None:
            raise FileNotFoundError(
                f"{self.name}: no {path} there; give the folder that `scalespec run` made, or run `scalespec analyze {self.name}`"
            )
        return tables.read_parquet(pa.BufferReader(data))


def laws_frame(entries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`laws.json` as a table with the columns of `tables.LAWS`."""
    rows = []
    for entry in entries:
        shared = {
            name: entry.get(name) for name in tables.LAWS.names if name not in ("param", "value", "lo", "hi", "status")
        }
        shared["status"] = " ".join(sorted(entry["status"]))
        params = entry["params"] or {None: {}}
        rows += [
            {**shared, "param": name, **{key: param.get(key) for key in ("value", "lo", "hi")}}
            for name, param in params.items()
        ]
    return tables.to_pandas(tables.from_rows(rows, tables.LAWS))
