"""Tables, laws, report and MLflow from what is on disk: what `run` ends with, and `analyze` and `sync` repeat."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pyarrow as pa

from scalespec.analysis import laws as scaling_laws
from scalespec.analysis import tables
from scalespec.analysis.laws import stored
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.report import page
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.states import Outcome
from scalespec.orchestrator.store import run_tables
from scalespec.orchestrator.store.folder import StudyStore, parquet_bytes, read_text
from scalespec.orchestrator.study import grid
from scalespec.orchestrator.study.file import Study, parse_study
from scalespec.orchestrator.tracking import recorder as tracking
from scalespec.trainables.spec import RunSpec


def conclude(
    study: Study, specs: Sequence[RunSpec], store: StudyStore, recorder: tracking.Recorder, problems: Sequence[str] = ()
) -> Outcome:
    """Tables, laws, report and MLflow, from what is on disk."""
    ids = recorder.run_ids or (store.read_json("mlflow.json") or {}).get("runs", {})
    made = write_tables(study, specs, store, ids)
    laws = fit_laws(made["runs"], made["curves"])
    store.files.write(tables.EVIDENCE_FILE, parquet_bytes(stored.evidence_table(laws)))
    store.write_json("laws.json", [law.to_json() for law in laws])  # last: the draws name the laws that they belong to
    if study.report:
        page.write(study, store, made, laws)
    states = {spec.run_key: "missing" for spec in specs}
    states |= dict(zip(made["runs"]["run_key"].to_pylist(), made["runs"]["status"].to_pylist(), strict=True))
    failed = any(state in ("failed", "missing") for state in states.values())
    entries = [law.to_json() for law in laws]
    tracked = recorder.complete(made["spectra_summary"].to_pylist(), entries, status="FAILED" if failed else "FINISHED")
    if tracked and set(recorder.run_ids) - set(ids):
        write_tables(study, specs, store, recorder.run_ids)
    return Outcome(store, states, laws, tracked, [*problems, *([recorder.problem] if recorder.problem else [])])


def write_tables(
    study: Study, specs: Sequence[RunSpec], store: StudyStore, ids: Mapping[str, str]
) -> dict[str, pa.Table]:
    """The five tables, of exactly the runs of the present study."""
    keys = pa.array([spec.run_key for spec in specs])
    rows = stage.stored(store)
    rows = rows.filter(pa.compute.is_in(rows["run_key"], value_set=keys))
    made = {
        "runs": run_tables.runs_table(store, specs, ids, study.resources.price_per_hour),
        "curves": run_tables.curves_table(store, specs),
        "checkpoints": run_tables.checkpoints_table(store, specs),
        "spectra": rows,
        "spectra_summary": stage.summary_table(rows),
    }
    for name, table in made.items():
        store.write_table(name, table)
    return {name: tables.sorted_by_key(table, name) for name, table in made.items()}


def fit_laws(runs: pa.Table, curves: pa.Table) -> list[scaling_laws.Law]:
    """Every law that the runs allow."""
    return scaling_laws.study_laws(tables.to_pandas(runs), tables.to_pandas(curves))


def open_study(folder: str) -> tuple[Study, StudyStore]:
    """The study in a study folder. Raises InputError where there is none."""
    root = folder.rstrip("/") if "://" in folder else os.path.abspath(folder)
    store = StudyStore(root)
    text = read_text(store, "study.yaml")
    if text is None:
        raise InputError(f"{folder}: no study.yaml there; give the folder that `scalespec run` made, STORAGE/STUDY")
    return parse_study(text, f"{folder}/study.yaml"), store


def stored_specs(study: Study, store: StudyStore) -> list[RunSpec]:
    """The runs of the study as it is on disk.

    The specs on disk are matched to the present grid where the data can still be read; a study folder that was copied away
    from its data keeps the runs of its last plan.
    """
    try:
        precisions = {
            spec.train.precision for key in store.files.names("runs") if (spec := store.spec(key)) is not None
        }
        return list(grid.expand(study, gpus="bf16" in precisions).runs)
    except InputError:
        specs = (store.spec(key) for key in store.files.names("runs"))
        return [spec for spec in specs if spec is not None and spec.study == study.name]


def analyze_study(folder: str) -> Outcome:
    """Tables, laws and report again, from what is on disk."""
    study, store = open_study(folder)
    return conclude(study, stored_specs(study, store), store, tracking.Recorder(None, []))


def sync_study(folder: str, uri: str | None) -> tuple[int, str]:
    """Brings MLflow into line with the disk. Returns the number of runs there, and where it is. Safe to repeat."""
    study, store = open_study(folder)
    target = tracking.target_of(store, uri or study.tracking.uri)
    if target is None:
        raise InputError(
            f"{folder} is not on a local disk, so SQLite cannot be used there; name a server with --tracking-uri"
        )
    tracker = tracking.Tracker(store, target, study.name)
    specs = stored_specs(study, store)
    recorder = tracking.Recorder(tracker, specs)
    summary = store.read_table("spectra_summary")
    laws = store.read_json("laws.json") or []
    results = [store.run(spec.run_key).result() for spec in specs]
    status = "FINISHED" if all(result and result["status"] != "failed" for result in results) else "FAILED"
    if not recorder.complete(summary.to_pylist() if summary is not None else [], laws, status=status):
        raise InputError(f"MLflow at {target.uri}: {recorder.problem}; start the server and run sync again")
    if store.read_table("runs") is not None:
        write_tables(study, specs, store, tracker.run_ids)
    return len(tracker.run_ids), target.uri
