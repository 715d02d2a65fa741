"""`scalespec run`: a study from its YAML to its report, and `analyze` and `sync`, which repeat its later stations from disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalespec.orchestrator import conclude
from scalespec.orchestrator.engine import cluster, sweep, worker
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.spectra.stage import following
from scalespec.orchestrator.states import Outcome
from scalespec.orchestrator.store import run_tables
from scalespec.orchestrator.store.folder import (
    LeaseError,
    StorageError,
    StudyStore,
    check_writable,
    lease,
    read_text,
    study_root,
)
from scalespec.orchestrator.study import grid, plan
from scalespec.orchestrator.study.file import Study, load_study, parse_study, to_yaml
from scalespec.orchestrator.study.grid import Grid
from scalespec.orchestrator.study.plan import Plan
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.terminal.progress import Follow, duration, say
from scalespec.orchestrator.tracking import recorder as tracking
from scalespec.orchestrator.version import code_version
from scalespec.trainables.family import checkpoint_steps
from scalespec.trainables.keys import AUTO
from scalespec.trainables.probe import Speed
from scalespec.trainables.spec import RunSpec

PROBE_S = 0.5
"""Seconds of probing for each kind of run before it is packed."""


def run_study(
    path: str, *, storage: str | None = None, overrides: Sequence[str] = (), address: str | None = None
) -> Outcome:
    """The whole study. What is finished already is not done again.

    Raises InputError before anything is written, for whatever the user can mend.
    """
    study = load_study(path, overrides)
    if storage is not None:
        study = replace(study, storage=storage)
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
    written = read_text(store, "study.yaml")
    if written and parse_study(written, "study.yaml").task["name"] != study.task["name"]:
        raise InputError(f"{store.root} holds a study of another task; change `name` or choose another --storage")


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
    return conclude.conclude(study, points.runs, store, recorder, problems)


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
        following(stage.follow, stage.compute, lambda: _cpus_for_spectra(planned, store, found)),
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

    def find(self) -> list[stage.Reference]:
        """What is still to be computed of the checkpoints committed so far."""
        if self.study.spectra.every == "never":
            return []
        done = stage.done_keys(self.store, self.study.spectra.profile)
        return stage.references(
            self.store, run_tables.checkpoints_table(self.store, self.specs), self.study.spectra.every, done
        )

    def follow(self) -> list[stage.Reference]:
        """The same while training goes on, when no run's last checkpoint is known."""
        return self.find() if self.study.spectra.every == "checkpoint" else []

    def compute(self, refs: list[stage.Reference], cpus: int) -> int:
        request = stage.Request(self.store.root, self.study.spectra.profile, self.study.spectra.vectors)
        return stage.run_stage(self.store, refs, request, cpus)


def with_room_for_spectra(study: Study, found: Machine) -> Machine:
    """With four CPUs or more and training on CPUs, one is kept for the spectral stage."""
    workers = 1 if study.train.workers == AUTO else study.train.workers
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
