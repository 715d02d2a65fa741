"""`scalespec spectra`: spectra of checkpoints that no study has made."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from scalespec.analysis import spectral, tables
from scalespec.orchestrator.engine.cluster import cpus_here
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.spectra import weights
from scalespec.orchestrator.spectra.tensors import WeightsError

Row = dict[str, Any]


def analyse_paths(paths: Sequence[str], profile: str) -> list[Row]:
    """Rows of every layer under the paths, checkpoints of one run as a series over steps. Raises InputError."""
    if profile not in spectral.PROFILES:
        raise InputError(f"--profile {profile}: not one of {', '.join(spectral.PROFILES)}")
    rows: list[Row] = []
    for name, members in _series(paths).items():
        try:
            refs = [ref for path in members for ref in weights.references(path, every=profile != spectral.WW)]
        except WeightsError as error:
            raise InputError(str(error)) from error
        rows += [{**row, "run_key": name, "profile": profile} for row in _rows(refs, profile, Path(name).name)]
    return rows


def _series(paths: Sequence[str]) -> dict[str, list[Path]]:
    """The paths by run: each for itself, but checkpoints whose names differ in their step alone are one run, as a folder of
    them is. Raises InputError for two of one step."""
    runs: dict[str, dict[int, Path]] = {}
    for path in map(Path, dict.fromkeys(paths)):
        step = _step(path)
        run = runs.setdefault(str(path if step is None else path.with_name(weights.without_step(path))), {})
        other = run.setdefault(step or 0, path)
        if other != path:
            raise InputError(f"{other} and {path} are both step {step} of one run; leave one of them out")
    return {
        name if len(steps) > 1 else str(next(iter(steps.values()))): [steps[step] for step in sorted(steps)]
        for name, steps in runs.items()
    }


def _step(path: Path) -> int | None:
    """The step of a path that is one checkpoint; None for a series, a run, and what names no step."""
    try:
        single = not weights.checkpoints_of_run(path) and len(weights.checkpoints(path)) == 1
    except WeightsError:  # said where it is read
        return None
    return weights.step_of(path) if single else None


def _rows(refs: Sequence[weights.LayerRef], profile: str, name: str) -> list[Row]:
    """The rows of one path, in the order of the references; layers are analysed side by side."""
    place = {ref: at for at, ref in enumerate(refs)}
    series: dict[str, list[weights.LayerRef]] = {}
    for ref in refs:
        series.setdefault(ref.layer, []).append(ref)
    work = list(series.values())
    costs = [sum(spectral.cost(ref.shape, ref.kind) for ref in steps) for steps in work]
    shapes = [spectral.matrices(steps[0].shape, steps[0].kind) for steps in work]
    order = spectral.shapes_first(shapes, costs)
    seconds = sum(costs) + sum(spectral.null_cost(count, short) for count, _, short in set(shapes))
    analyse = functools.partial(_layer, profile=profile)
    found = spectral.each(analyse, [work[at] for at in order], seconds=seconds, cpus=cpus_here())
    errors = Console(stderr=True)
    shown = track(
        found, name, total=len(work), console=errors, transient=True, disable=not errors.is_terminal, show_speed=False
    )
    pairs = [pair for _, pairs in shown for pair in pairs]
    return [row for _, rows in sorted(pairs, key=lambda pair: place[pair[0]]) for row in rows]


def _layer(steps: Sequence[weights.LayerRef], profile: str) -> list[tuple[weights.LayerRef, list[Row]]]:
    """The rows of one layer at each step, with its distance from the first and from the last readable one."""
    out = []
    first = previous = None
    for ref in steps:
        try:
            weight = weights.read(ref)
        except WeightsError as error:
            sides = sorted(ref.shape[:2], reverse=True)
            row: Row = {"layer": ref.layer, "kind": ref.kind, "rows": sides[0], "cols": sides[-1]}
            rows = [row | {"status": "unreadable", "error": str(error)}]
        else:
            options = {"kind": ref.kind, "profile": profile, "init": _like(weight, first)}
            rows = spectral.layer_rows(ref.layer, weight, previous=_like(weight, previous), **options)
            first = weight if first is None else first
            previous = weight
        out.append((ref, [{**row, "step": ref.step} for row in rows]))
    return out


def _like(weight: Any, other: Any) -> Any:
    return other if other is not None and other.shape == weight.shape else None


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows with the schema of `spectra.parquet`."""
    return tables.from_rows(
        ({k: v for k, v in row.items() if k in tables.SPECTRA.names} for row in rows), tables.SPECTRA
    )


def check_out(path: str) -> None:
    """Raises InputError for a name that `write` cannot serve: better before hours of work than after."""
    if not path.endswith((".parquet", ".csv")):
        raise InputError(f"--out {path}: end the name in .parquet or .csv")


def write(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Writes the rows as Parquet, or as CSV without the eigenvalues."""
    made = table(rows)
    try:
        if path.endswith(".parquet"):
            pq.write_table(made, path)
        else:
            pa.csv.write_csv(made.drop_columns(["eigenvalues"]), path)
    except OSError as error:
        raise InputError(f"--out {path}: {error}") from error


def plain(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows as JSON values, without the eigenvalues."""
    found: list[Row] = table(rows).drop_columns(["eigenvalues"]).to_pylist()
    return found


def draw(rows: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Draws the pictures of the rows into a folder as SVG."""
    from scalespec.analysis.plots import spectra as plots
    from scalespec.analysis.plots.style import to_svg

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in plots.pictures(rows).items():
            Path(folder, f"{name}.svg").write_text(to_svg(figure))
    except OSError as error:
        raise InputError(f"--plots {folder}: {error}") from error
