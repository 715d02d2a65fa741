"""Tables, laws, report and MLflow from what is on disk: what `run` ends with, and `analyze` and `sync` repeat."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import pyarrow as pa

from scalespec.analysis import laws as scaling_laws
from scalespec.analysis import tables
from scalespec.analysis.laws import stored
from scalespec.orchestrator.design import log as ask_log
from scalespec.orchestrator.design.ask import Decided
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.report import page
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.states import Outcome
from scalespec.orchestrator.store import run_tables, watch
from scalespec.orchestrator.store.folder import StudyStore, parquet_bytes, read_text
from scalespec.orchestrator.study.file import parse_study
from scalespec.orchestrator.study.study import Study
from scalespec.orchestrator.tracking.mlflow import Tracker, target_of
from scalespec.orchestrator.tracking.recorder import Recorder

log = logging.getLogger("scalespec.conclude")


def conclude(
    study: Study,
    asks: Sequence[Decided],
    store: StudyStore,
    recorder: Recorder,
    problems: Sequence[str] = (),
) -> Outcome:
    """Tables, laws, report and MLflow, from what is on disk. What fails of the report costs neither tables nor MLflow."""
    said = list(problems)
    ids = recorder.run_ids or (store.read_json("mlflow.json") or {}).get("runs", {})
    made = write_tables(study, asks, store, ids)
    laws = fit_laws(made["runs"], made["curves"])
    entries = [law.to_json() for law in laws]
    store.files.write(tables.EVIDENCE_FILE, parquet_bytes(stored.evidence_table(laws)))
    store.write_json("laws.json", entries)  # last: the draws name the laws that they belong to
    if study.report:
        try:
            page.write(study, store, made, laws, next((spec.unit for spec in ask_log.specs(asks)), ""))
        except Exception as error:  # a fault of ours; the study is done all the same
            log.exception("report")
            said.append(f"the report could not be written: {type(error).__name__}: {error}")
    states = {spec.run_key: "missing" for spec in ask_log.specs(asks)}
    states |= dict(zip(made["runs"]["run_key"].to_pylist(), made["runs"]["status"].to_pylist(), strict=True))
    failed = any(state in ("failed", "missing") for state in states.values())
    tracked = recorder.complete(made["spectra_summary"].to_pylist(), entries, status="FAILED" if failed else "FINISHED")
    if tracked and set(recorder.run_ids) - set(ids):
        store.write_table("runs", run_tables.with_mlflow_ids(made["runs"], recorder.run_ids))
    return Outcome(store, states, laws, tracked, [*said, *([recorder.problem] if recorder.problem else [])])


def write_tables(
    study: Study, asks: Sequence[Decided], store: StudyStore, ids: Mapping[str, str]
) -> dict[str, pa.Table]:
    """The tables, of exactly the runs of the asks in force."""
    specs = ask_log.specs(asks)
    rows = stage.stored(store, [spec.run_key for spec in specs])  # first, while nothing else takes memory
    pa.default_memory_pool().release_unused()
    made = {"spectra": rows, "spectra_summary": stage.summary_table(rows), "asks": ask_log.table(asks)}
    price, roles, found = study.resources.price_per_hour, ask_log.roles(asks), run_tables.find(store, specs)
    made |= {
        "runs": run_tables.runs_table(store, specs, ids, price, roles, found=found),
        "curves": run_tables.curves_table(store, specs, found=found),
        "checkpoints": run_tables.checkpoints_table(store, specs, found=found),
    }
    del found, rows
    for name in list(made):  # one at a time, so that no two are there twice
        made[name] = tables.sorted_by_key(made[name], name)
        store.write_table(name, made[name])
        pa.default_memory_pool().release_unused()
    return made


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


def analyze_study(folder: str) -> Outcome:
    """Tables, laws and report again, from what is on disk."""
    study, store = open_study(folder)
    return conclude(study, ask_log.read(store), store, Recorder(None))


def sync_study(folder: str, uri: str | None) -> tuple[int, str]:
    """Brings MLflow into line with the disk. Returns the number of runs there, and where it is. Safe to repeat."""
    study, store = open_study(folder)
    target = target_of(store, uri or study.tracking.uri)
    if target is None:
        raise InputError(
            f"{folder} is not on a local disk, so SQLite cannot be used there; name a server with --tracking-uri"
        )
    tracker = Tracker(store, target, study.name)
    asks = ask_log.read(store)
    specs = ask_log.specs(asks)
    recorder = Recorder(tracker, specs)
    summary = store.read_table("spectra_summary")
    laws = store.read_json("laws.json") or []
    found = watch.results(store, [spec.run_key for spec in specs])
    whole = len(found) == len(specs) and all(result.get("status") != "failed" for result in found.values())
    status = "FINISHED" if whole else "FAILED"
    if not recorder.complete(summary.to_pylist() if summary is not None else [], laws, status=status):
        raise InputError(f"MLflow at {target.uri}: {recorder.problem}; start the server and run sync again")
    if (runs := store.read_table("runs")) is not None:
        store.write_table("runs", run_tables.with_mlflow_ids(runs, tracker.run_ids))
    return len(tracker.run_ids), target.uri
