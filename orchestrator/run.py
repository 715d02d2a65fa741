"""`scalespec run`: a study from its YAML to its report, and `analyze` and `sync`, which repeat its later stations from disk."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from analysis import laws as scaling_laws
from analysis import tables
from orchestrator import cluster, collect, grid, plan, spectra, sweep, tracking, worker
from orchestrator.errors import InputError
from orchestrator.grid import Grid
from orchestrator.machine import Machine
from orchestrator.plan import Plan
from orchestrator.progress import Follow, duration, say
from orchestrator.store import LeaseError, StorageError, StudyStore, check_writable, lease, study_root
from orchestrator.study import Study, load_study, parse_study, to_yaml
from trainables.checkpoints import LocalFiles
from trainables.probe import Speed
from trainables.steps import checkpoint_steps
from trainables.task import RunSpec

PROBE_S = 0.5
"""Seconds of probing for each kind of run before it is packed."""

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Outcome:
    """What a finished study says of itself."""

    store: StudyStore
    states: Mapping[str, str]
    laws: Sequence[scaling_laws.Law]
    tracked: bool
    problems: Sequence[str]

    @property
    def exit_code(self) -> int:
        return FAILED if any(state in ("failed", "missing") for state in self.states.values()) else DONE


def run_study(
    path: str, *, storage: str | None = None, overrides: Sequence[str] = (), address: str | None = None
) -> Outcome:
    """The whole study. What is finished already is not done again.

    Raises InputError before anything is written, for whatever the user can mend.
    """
    study = load_study(path, overrides)
    if storage is not None:
        study = study.model_copy(update={"storage": storage})
    try:
        store = StudyStore(study_root(study.storage, study.name))
        _refuse_other_study(store, study)
        with cluster.connected(address) as found:
            points = grid.expand(study, gpus=found.gpus > 0)
            for workers in {spec.train.workers for spec in points.runs}:
                sweep.check_room(workers, with_room_for_spectra(study, found))
            check_writable(store.root)
            with lease(store) as held:
                return _drive(study, points, store, held.session, found)
    except (StorageError, LeaseError, sweep.NoRoomError) as error:
        raise InputError(str(error)) from error


def _refuse_other_study(store: StudyStore, study: Study) -> None:
    written = _read(store, "study.yaml")
    if written and parse_study(written, "study.yaml").task["name"] != study.task["name"]:
        raise InputError(f"{store.root} holds a study of another task; change `name` or choose another --storage")


def _read(store: StudyStore, path: str) -> str | None:
    try:
        return store.files.read(path).decode()
    except FileNotFoundError:
        return None


def _drive(study: Study, points: Grid, store: StudyStore, session: str, found: Machine) -> Outcome:
    store.files.write("study.yaml", to_yaml(study).encode())
    todo = [spec for spec in points.runs if not worker.is_finished(store.run(spec.run_key), session)]
    target = tracking.target_of(store, study.tracking.uri)
    if target is None:
        say(
            "tracking: the study folder is on no local disk, so MLflow is not written live; `scalespec sync` does it later"
        )
    recorder = tracking.Recorder(None if target is None else tracking.Tracker(store, target, study.name), points.runs)
    recorder.start()
    stage = Stage(study, points.runs, store)
    if todo:
        problems = _train(study, points, {spec.run_key for spec in todo}, stage, session, found)
    else:
        say(f"all {len(points.runs)} runs are finished; nothing to train")
        problems = []
    refs = stage.find()
    if refs:
        say(f"spectra: {len(refs)} matrices")
        stage.compute(refs, found.cpus)
    recorder.stop()
    return conclude(study, points.runs, store, recorder, problems)


def _train(study: Study, points: Grid, keys: Collection[str], stage: Stage, session: str, found: Machine) -> list[str]:
    """Plans and trains the runs named, with the spectral stage beside them. Returns what went wrong with packs."""
    store, machine = stage.store, with_room_for_spectra(study, found)
    planned, points = make_plan(study, points, keys, machine)
    store.write_json("plan.json", planned.to_json())
    todo = [spec for spec in points.runs if spec.run_key in keys]
    for spec in todo:
        store.write_spec(spec)
    again = f", {len(points.runs) - len(todo)} finished before" if len(todo) < len(points.runs) else ""
    say(
        f"{planned.study}: {len(todo)} runs{again}, {len(planned.packs)} packs on {planned.lanes} lanes,"
        f" about {duration(planned.seconds)}"
    )
    settings = sweep.Sweep(store.root, session, machine.cpus_per_worker, found.gpus > 0, code_version())
    with (
        spectra.following(stage.follow, stage.compute, lambda: _cpus_for_spectra(planned, store, found)),
        Follow({run.run_key: run.seconds for run in planned.runs}, planned.lanes, lambda: _states(store, todo)),
    ):
        errors = sweep.train_packs(planned.packs, all_jobs(points, todo), settings, machine)
    store.files.delete(".ray")
    return [f"pack {index}: {text}" for index, text in errors.items()]


def _cpus_for_spectra(planned: Plan, store: StudyStore, found: Machine) -> int:
    """CPUs that the spectral stage may take while training goes on: one of four or more, else those of lanes run dry."""
    if found.cpus >= 4:
        return 1
    left = sum(any(store.run(key).result() is None for key in pack.run_keys) for pack in planned.packs)
    return max(0, planned.lanes - left)


@dataclass(frozen=True)
class Stage:
    """The spectral stage of one study."""

    study: Study
    specs: Sequence[RunSpec]
    store: StudyStore

    def find(self) -> list[spectra.Reference]:
        """What is still to be computed of the checkpoints committed so far."""
        if self.study.spectra.every == "never":
            return []
        done = spectra.done_keys(self.store, self.study.spectra.profile)
        return spectra.references(
            self.store, collect.checkpoints_table(self.store, self.specs), self.study.spectra.every, done
        )

    def follow(self) -> list[spectra.Reference]:
        """The same while training goes on, when no run's last checkpoint is known."""
        return self.find() if self.study.spectra.every == "checkpoint" else []

    def compute(self, refs: list[spectra.Reference], cpus: int) -> int:
        request = spectra.Request(self.store.root, self.study.spectra.profile, self.study.spectra.vectors)
        return spectra.run_stage(self.store, refs, request, cpus)


def with_room_for_spectra(study: Study, found: Machine) -> Machine:
    """With four CPUs or more and training on CPUs, one is kept for the spectral stage."""
    workers = 1 if study.train.workers == "auto" else study.train.workers
    room = found.cpus >= 4 and found.cpus > workers * study.resources.cpus_per_worker
    spare = 1 if study.spectra.every == "checkpoint" and room and not found.gpus else 0
    return replace(found, cpus=found.cpus - spare, cpus_per_worker=study.resources.cpus_per_worker)


def make_plan(study: Study, points: Grid, keys: Collection[str], machine: Machine) -> tuple[Plan, Grid]:
    """The plan of the runs named, after a short probe on this machine, and the grid with its workers chosen."""
    speeds = _speeds(study, points, machine)
    points = plan.with_workers(study, points, speeds, machine)
    return plan.make_plan(
        study, points, [spec for spec in points.runs if spec.run_key in keys], speeds, machine
    ), points


def _speeds(study: Study, points: Grid, machine: Machine) -> dict[tuple[Any, ...], Speed]:
    if machine.gpus and not cluster.this_machine().gpus:
        # the head of a GPU cluster often has no GPU itself, and its CPU would take hours for one step
        found: dict[tuple[Any, ...], Speed] = cluster.on_a_gpu(_probe_there, to_yaml(study), machine.cpus_per_worker)
        return found
    return plan.probe(points, points.runs, threads=machine.cpus_per_worker, seconds=PROBE_S)


def _probe_there(text: str, threads: int) -> dict[tuple[Any, ...], Speed]:
    points = grid.expand(parse_study(text, "study.yaml"), gpus=True)
    return plan.probe(points, points.runs, threads=threads, seconds=PROBE_S)


def all_jobs(points: Grid, todo: Sequence[RunSpec]) -> dict[str, worker.Job]:
    """A job for each run; the steps at which a trunk keeps weights are those of the whole family, finished runs included."""
    wanted = {spec.run_key for spec in todo}
    jobs: dict[str, worker.Job] = {}
    for family in points.families().values():
        steps = sorted(
            {s for spec in family for s in checkpoint_steps(plan.steps_in(spec, points), spec.train.checkpoints)}
        )
        counts = {spec.run_key: points.of(spec).counts(spec.width) for spec in family}
        for job in worker.jobs_of(family, plan.shares_trunk(family), counts, steps):
            if job.spec.run_key in wanted:
                jobs[job.spec.run_key] = job
    return jobs


def _states(store: StudyStore, specs: Sequence[RunSpec]) -> dict[str, str]:
    results = sweep.results_of(store, [spec.run_key for spec in specs])
    return {
        key: result["status"] + (f" ({result['error']})" if result.get("error") else "")
        for key, result in results.items()
    }


def conclude(
    study: Study, specs: Sequence[RunSpec], store: StudyStore, recorder: tracking.Recorder, problems: Sequence[str] = ()
) -> Outcome:
    """Tables, laws, report and MLflow, from what is on disk."""
    ids = recorder.run_ids or (store.read_json("mlflow.json") or {}).get("runs", {})
    made = write_tables(study, specs, store, ids)
    laws = fit_laws(made["runs"], made["curves"])
    store.write_json("laws.json", [law.to_json() for law in laws])
    if study.report:
        from orchestrator import report

        report.write(study, store, made, laws)
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
    rows = spectra.stored(store)
    rows = rows.filter(pa.compute.is_in(rows["run_key"], value_set=keys))
    made = {
        "runs": collect.runs_table(store, specs, ids, study.resources.price_per_hour),
        "curves": collect.curves_table(store, specs),
        "checkpoints": collect.checkpoints_table(store, specs),
        "spectra": rows,
        "spectra_summary": spectra.summary_table(rows),
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
    text = _read(store, "study.yaml")
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


def code_version() -> str | None:
    """Version of scalespec, and the git commit of the working directory where it has one."""
    try:
        version = importlib.metadata.version("scalespec")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    commit = os.environ.get("SCALESPEC_GIT_COMMIT") or tracking.git_commit()
    return f"{version}+{commit[:12]}" if commit else version


def free_bytes(store: StudyStore) -> int | None:
    """Free disk where the study lies; None behind a URI."""
    if not isinstance(store.files, LocalFiles):
        return None
    path = store.root
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free
