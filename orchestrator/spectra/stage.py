"""The spectral stage: every layer of every checkpoint, on Ray Data, from references.

A row of the dataset is a block: references to tensors of about equal total cost, the costliest block first. Weights never
pass through the object store. Equal content (a trunk's checkpoint lies in every run of its family) is computed once; results
are keyed, so a second pass computes only what is missing; what cannot be read is a row that says so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from scalespec.analysis import spectral, tables
from scalespec.orchestrator.spectra import weights
from scalespec.orchestrator.spectra.tensors import TensorFile, WeightsError
from scalespec.orchestrator.store.files import open_files
from scalespec.orchestrator.store.folder import StudyStore, parquet_bytes, read_part

log = logging.getLogger("scalespec.spectra")

BLOCKS_PER_CPU = 8
"""Enough blocks to balance, few enough that their overhead is small."""

HERE_S = 10.0
"""Seconds of work, by its estimate, up to which it is done in the driver: processes of Ray take as long to load their libraries."""

COMMIT_S = 10.0
"""Seconds of rows that a crash may cost."""

FILES_OPEN = 256
"""Headers that a task remembers."""

PROCESS_BYTES = 400 << 20
"""What a task's process takes before its first matrix: Python, torch, pyarrow and scipy."""

COLUMNS = frozenset(tables.SPECTRA.names)

Key = tuple[str, int, str]
"""run_key, step, layer."""


@dataclass(frozen=True)
class Reference:
    """One tensor of one checkpoint, and every (run, step) whose checkpoint has the same content."""

    path: str
    layer: str
    shape: tuple[int, ...]
    kind: str
    init: str | None
    previous: str | None
    owners: tuple[tuple[str, int, int], ...]
    """run_key, step, samples."""

    @property
    def keys(self) -> list[Key]:
        """What its rows will be found under."""
        return [(run_key, step, self.layer) for run_key, step, _ in self.owners]

    @property
    def cost(self) -> float:
        others = (self.init is not None) + (self.previous is not None)
        return spectral.cost(self.shape, self.kind, decompositions=2 + others)


@dataclass(frozen=True)
class Request:
    """What to compute of each tensor."""

    root: str
    profile: str
    vectors: bool


def references(
    store: StudyStore, checkpoints: Iterable[Mapping[str, Any]], every: str, done: set[Key]
) -> list[Reference]:
    """What is still to be computed of these rows of the checkpoints table. `every`: checkpoint | last."""
    rows = sorted((dict(row) for row in checkpoints), key=lambda row: (row["run_key"], row["step"]))
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row["run_key"], []).append(row)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for steps in by_run.values():
        for at, row in enumerate(steps):
            if every == "last" and row is not steps[-1]:
                continue
            row["init"] = steps[0]["path"] if steps[0]["step"] == 0 else None
            row["previous"] = steps[at - 1]["path"] if at else None
            # two trunk runs share content only as long as what they are compared with is the same too
            before = steps[at - 1]["sha256"] if at else ""
            groups.setdefault((row["sha256"], steps[0]["sha256"], before), []).append(row)
    out = []
    layers: dict[str, tuple[tuple[str, tuple[int, ...], str], ...]] = {}
    for group in groups.values():
        first = group[0]
        if first["run_key"] not in layers:
            layers[first["run_key"]] = layers_of(store, by_run[first["run_key"]])
        for layer, shape, kind in layers[first["run_key"]]:
            lack = [r for r in group if (r["run_key"], r["step"], layer) not in done]
            if lack:
                owners = tuple((r["run_key"], r["step"], r["samples"]) for r in lack)
                read = lack[0]  # the first that lacks it: what was computed before need not be there any more
                out.append(Reference(read["path"], layer, shape, kind, read["init"], read["previous"], owners))
    return out


def layers_of(
    store: StudyStore, checkpoints: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Name, shape and kind of each layer of a run: from the first readable checkpoint, since all of them have the same."""
    for row in checkpoints:
        with contextlib.suppress(WeightsError):
            return _layers(store.root, row["path"], row["sha256"])
    return ()


@functools.lru_cache(maxsize=4096)
def _layers(root: str, path: str, sha256: str) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Of one checkpoint, which never changes: read once in a process."""
    tensors = TensorFile(open_files(root), path, committed=True).tensors
    return tuple((found.tensor, found.shape, found.kind) for found in weights.layers(tensors))


def blocks(refs: Sequence[Reference], cpus: int) -> list[list[Reference]]:
    """Groups of about equal cost, a large matrix alone, costliest first; tensors of one file stay together."""
    limit = sum(ref.cost for ref in refs) / (BLOCKS_PER_CPU * max(1, cpus))
    out: list[list[Reference]] = []
    filled = 0.0
    for ref in sorted(refs, key=lambda ref: (ref.path, ref.layer)):
        if not out or filled + ref.cost > limit:
            out.append([])
            filled = 0.0
        out[-1].append(ref)
        filled += ref.cost
    return sorted(out, key=lambda block: -sum(ref.cost for ref in block))


def analyse_block(refs: Iterable[Reference], request: Request) -> list[dict[str, Any]]:
    """The rows of one block. Never raises for what is in a file."""
    files = open_files(request.root)

    @functools.lru_cache(maxsize=FILES_OPEN)
    def opened(path: str) -> TensorFile:
        return TensorFile(files, path, committed=True)

    def tensor(path: str, ref: Reference) -> Any:
        return weights.oriented(opened(path).read(ref.layer), ref.layer)

    rows = []
    for ref in refs:
        base = {"layer": ref.layer, "profile": request.profile, "kind": ref.kind}
        try:
            weight = tensor(ref.path, ref)
            init, previous = (_same_shape(tensor, path, ref) for path in (ref.init, ref.previous))
            found = spectral.layer_rows(
                ref.layer,
                weight,
                kind=ref.kind,
                profile=request.profile,
                vectors=request.vectors,
                device="cpu",
                seed=int.from_bytes(hashlib.sha256(f"{ref.layer}:{ref.owners[0][1]}".encode()).digest()[:4], "big"),
                init=init,
                previous=previous,
            )
        except (OSError, ValueError, KeyError, MemoryError, ArithmeticError) as error:
            sides = sorted(ref.shape[:2], reverse=True)
            words = f"{type(error).__name__}: {error}"
            found = [{**base, "rows": sides[0], "cols": sides[-1], "status": "unreadable", "error": words}]
        for row in found:
            known = {name: value for name, value in row.items() if name in COLUMNS}
            rows += [{**known, "run_key": key, "step": step, "samples": samples} for key, step, samples in ref.owners]
    return rows


def _same_shape(read: Callable[[str, Reference], Any], path: str | None, ref: Reference) -> Any:
    """The layer in an earlier checkpoint; None where that one cannot be read, which costs only the distances."""
    if path is None or path == ref.path:
        return None
    try:
        found = read(path, ref)
    except WeightsError:
        return None
    return found if tuple(found.shape) == tuple(ref.shape) else None


def done_keys(store: StudyStore, profile: str) -> set[Key]:
    """What the stage has computed already, by stored tensor: `native` may have split one into `name[q]`, `name[k]` …

    An unreadable tensor is tried again: it may have been restored.
    """
    table = stored(store, columns=(*tables.KEYS["spectra"], "status"))
    mine = (pc.field("profile") == profile) & (pc.field("status") != "unreadable")
    columns = (table.filter(mine)[name].to_pylist() for name in ("run_key", "step", "layer"))
    return {(run_key, step, layer.partition("[")[0]) for run_key, step, layer in zip(*columns, strict=True)}


def stored(store: StudyStore, run_keys: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The computed rows of these runs, by default of all, the newest of each key. `columns`: those to read, the key's among them."""
    schema = tables.SPECTRA if columns is None else pa.schema([tables.SPECTRA.field(name) for name in columns])
    wanted = None if run_keys is None else pa.array(run_keys, pa.string())

    def parts() -> Iterator[pa.Table]:
        yield schema.empty_table()
        for name in store.files.names("spectra"):
            if name.endswith(".parquet"):
                part = read_part(store.files, f"spectra/{name}", schema, columns)
                if part is not None:
                    yield part if wanted is None else part.filter(pc.is_in(part["run_key"], value_set=wanted))

    return tables.last_of_each_key(pa.concat_tables(parts()), "spectra")


def run_stage(store: StudyStore, refs: Sequence[Reference], request: Request, cpus: int, *, lent: bool = False) -> int:
    """Computes `refs` and commits the rows as they come. Returns the number of rows.

    Much work goes to Ray Data on `cpus` CPUs; little is done here, before a process elsewhere would have loaded its libraries.
    `lent`: the CPUs belong to lanes that wait, so the tasks ask Ray for none and only their number is bounded.
    """
    here = sum(ref.cost for ref in refs) <= HERE_S
    count, pending, written = 0, [], time.monotonic()
    for table in _here(refs, request) if here else _on_ray(refs, request, cpus, lent):
        pending.append(table)
        count += table.num_rows
        if time.monotonic() - written > COMMIT_S:
            _commit(store, pending)
            pending, written = [], time.monotonic()
    _commit(store, pending)
    return count


def _here(refs: Sequence[Reference], request: Request) -> Iterator[pa.Table]:
    """Block by block, on one thread, as in a task: threads of a linear algebra library would take the CPUs of what trains."""
    for block in blocks(refs, cpus=1):
        with threadpool_limits(1, "blas"):
            rows = analyse_block(block, request)
        yield tables.from_rows(rows, tables.SPECTRA)


def _on_ray(refs: Sequence[Reference], request: Request, cpus: int, lent: bool) -> Iterator[pa.Table]:
    import ray.data
    from ray.data import ExecutionResources

    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    # the default would end the stage where one decomposition takes 30 minutes, or while training holds every CPU
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cpus)
    work = [{"block": json.dumps([asdict(ref) for ref in block])} for block in blocks(refs, cpus)]
    memory = PROCESS_BYTES + max(spectral.memory(ref.shape, ref.kind) for ref in refs)
    dataset = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _analyse_batch,
        fn_kwargs={"request": asdict(request)},
        batch_size=1,
        num_cpus=0 if lent else 1,
        compute=ray.data.TaskPoolStrategy(size=cpus),  # resource limits do not bound tasks without CPUs
        memory=memory,
        zero_copy_batch=True,
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield tables.conform(batch, tables.SPECTRA)


def _analyse_batch(batch: Mapping[str, Any], request: Mapping[str, Any]) -> pa.Table:
    rows = []
    for text in batch["block"]:
        refs = [
            Reference(**{**ref, "owners": tuple(map(tuple, ref["owners"])), "shape": tuple(ref["shape"])})
            for ref in json.loads(text)
        ]
        rows += analyse_block(refs, Request(**request))
    return tables.from_rows(rows, tables.SPECTRA)


def _commit(store: StudyStore, parts: Sequence[pa.Table]) -> None:
    if parts:
        data = parquet_bytes(pa.concat_tables(parts))
        name = f"{time.time_ns()}-{hashlib.sha256(data).hexdigest()[:8]}"
        store.files.write(f"spectra/part-{name}.parquet", data)


def summary_of(store: StudyStore, run_keys: Sequence[str]) -> pd.DataFrame:
    """The summaries of these runs, from what is computed so far."""
    read = [name for name in spectral.summary.READ if name in tables.SPECTRA.names]
    return tables.to_pandas(summary_table(stored(store, run_keys, read)))


def summary_table(spectra: pa.Table) -> pa.Table:
    """One row a checkpoint: summaries that survive outliers.

    Rows are taken in the order of their keys: a mean depends on the order in its last digit, and parts are written as they come.
    """
    read = [name for name in spectral.summary.READ if name in spectra.column_names]
    ordered = tables.sorted_by_key(spectra.select(read), "spectra").to_pandas()
    return tables.from_frame(spectral.summaries(ordered), tables.SPECTRA_SUMMARY)
