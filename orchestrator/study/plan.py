"""What a study will do before it does it: units of work for its lanes, and the time, disk and money they will take."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scalespec.analysis import spectral
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.file import Study
from scalespec.orchestrator.study.grid import Grid, data_key, warning_of
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.units import Unit
from scalespec.trainables.family import FamilySchedule, RunSchedule, family_schedule
from scalespec.trainables.keys import AUTO
from scalespec.trainables.probe import Speed, measure
from scalespec.trainables.rules.flops import CONVENTION
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec

LANE_START_UP_S = 3.0
"""Starting a lane of one worker on each of two CPUs: the trial, which imports torch."""

GROUP_START_UP_S = 8.0
"""Starting a lane of several workers, or on GPUs: the trial, the group's processes and their connection."""

STUDY_START_UP_S = 10.0
"""Starting Ray, reading the data and making the plan. `python benchmarks/orchestration.py` prints it together with the lanes'."""

STUDY_END_S = 10.0
"""Tables, fits with their bootstrap, the report and MLflow; `python benchmarks/conclude.py` prints all but the last."""

START_UPS_HELD = 20
"""A family gets more than one worker where it would take so many times the start of its group."""

FEW_STEPS = 200
"""Fewer steps leave an optimizer no time to reach the regime that the rules assume (Shallue et al. 2019, arXiv:1811.03600)."""


@dataclass(frozen=True)
class PlannedRun:
    """One run as `plan` shows it."""

    run_key: str
    family_key: str
    width: int
    data_fraction: str
    seed: int
    axes: Mapping[str, Any]
    params_matmul: int
    steps: int
    samples: int
    lr: float
    flops_train: float
    seconds: float
    """Marginal: the trunk counts for the run that has to train it."""
    disk_bytes: int
    unit: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All of a study's runs, or those that are left of it."""

    study: str
    runs: tuple[PlannedRun, ...]
    units: tuple[Unit, ...]
    """Longest first."""
    lanes: int
    seconds: float
    """Wall time from the command to the report."""
    start_up_share: float
    """Share of the lanes' time that goes into starting worker groups."""
    spectra_seconds: float
    disk_bytes: int
    cost_usd: float | None
    flops_train: float
    flops_convention: str
    further_runs: int = 0
    """At most so many more may be asked for once these are finished: stages that depend on results."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def training_seconds(self) -> float:
        """Of the units alone: what a further round takes in lanes that are there."""
        return _makespan([unit.seconds for unit in self.units], self.lanes)

    def followed_by(self, later: Plan) -> Plan:
        """This plan and that of a later ask, as one: the later one finds Ray, the data and its lanes there."""
        costs = (self.cost_usd, later.cost_usd)
        return replace(
            self,
            runs=self.runs + later.runs,
            units=self.units + later.units,
            lanes=max(self.lanes, later.lanes),
            seconds=self.seconds + later.training_seconds + later.spectra_seconds,
            spectra_seconds=self.spectra_seconds + later.spectra_seconds,
            disk_bytes=self.disk_bytes + later.disk_bytes,
            cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
            flops_train=self.flops_train + later.flops_train,
        )


def probe(
    grid: Grid, runs: Sequence[RunSpec], *, threads: int = 1, seconds: float = 1.0
) -> dict[tuple[Any, ...], Speed]:
    """The measured speed of every kind of run among `runs` on this machine."""
    kinds = {
        speed_key(spec): spec for spec in sorted(runs, key=lambda spec: spec.data_fraction)
    }  # the longest of a kind
    return {key: _measured(spec, grid, seconds, threads) for key, spec in kinds.items()}


def _measured(spec: RunSpec, grid: Grid, seconds: float, threads: int) -> Speed:
    try:
        return measure(spec, grid.of(spec), seconds=seconds, threads=threads)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # a task that cannot make one step would fail in every worker
        words = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise InputError(
            f"task {spec.task}: a training step at width {spec.width} failed: {type(error).__name__}: {words}"
        ) from error


def speed_key(spec: RunSpec) -> tuple[Any, ...]:
    """Runs with equal keys take equal time for a step."""
    return (data_key(spec), spec.width, spec.optim.batch_size, spec.train.precision)


def make_plan(
    study: Study,
    grid: Grid,
    runs: Sequence[RunSpec],
    speeds: Mapping[tuple[Any, ...], Speed],
    machine: Machine,
    *,
    first: int = 0,
) -> Plan:
    """What `runs` (those still to be trained) take, their units numbered from `first`. A pure function of the speeds."""
    families = schedules(grid)
    by_key = {run.run_key: run for family in families.values() for run in family.runs}
    seconds = run_seconds(grid, families, runs, speeds)
    units = units_of(grid, families, runs, seconds, first)
    unit_of = {key: unit.number for unit in units for key in unit.run_keys}
    planned = tuple(
        _planned(spec, by_key[spec.run_key], grid, speeds, seconds[spec.run_key], unit_of[spec.run_key])
        for spec in runs
    )
    lanes = max((min(machine.lanes(unit.workers), len(units)) for unit in units), default=1)
    groups = machine.gpus > 0 or any(unit.workers > 1 for unit in units)
    start = GROUP_START_UP_S if groups else LANE_START_UP_S
    starts = lanes * start
    training = start + _makespan([unit.seconds for unit in units], lanes)
    spectra = _spectra_seconds(study, by_key, grid, runs, machine)
    wall = STUDY_START_UP_S + training + spectra + STUDY_END_S if runs else 0.0
    busy = sum(unit.seconds for unit in units)
    price = study.resources.price_per_hour
    return Plan(
        study=study.name,
        runs=planned,
        units=tuple(units),
        lanes=lanes,
        seconds=wall,
        start_up_share=starts / (busy + starts) if units else 0.0,
        spectra_seconds=spectra,
        disk_bytes=sum(run.disk_bytes for run in planned),
        cost_usd=None if price is None else price * (busy + starts) / 3600,
        flops_train=sum(run.flops_train for run in planned),
        flops_convention=CONVENTION,
    )


def run_seconds(
    grid: Grid,
    families: Mapping[str, FamilySchedule],
    runs: Sequence[RunSpec],
    speeds: Mapping[tuple[Any, ...], Speed],
) -> dict[str, float]:
    """Marginal seconds of each run."""
    out: dict[str, float] = {}
    for key, members in _by_family(runs).items():
        out |= _family_seconds(members, families[key], grid, speeds)
    return out


def units_of(
    grid: Grid,
    families: Mapping[str, FamilySchedule],
    runs: Sequence[RunSpec],
    seconds: Mapping[str, float],
    first: int = 0,
) -> list[Unit]:
    """The units of these runs, longest first, numbered from `first`.

    Longest processing time first is within 4/3 of the best makespan (Graham 1969, doi:10.1137/0117039).
    """
    parts = [
        part
        for key, members in _by_family(runs).items()
        for part in ([tuple(members)] if families[key].shares_trunk else [(spec,) for spec in members])
    ]
    costs = [sum(seconds[spec.run_key] for spec in part) for part in parts]
    order = sorted(range(len(parts)), key=lambda at: -costs[at])
    return [
        Unit(
            number=first + place,
            family_key=parts[at][0].family_key,
            run_keys=tuple(spec.run_key for spec in parts[at]),
            workers=parts[at][0].train.workers,
            seconds=costs[at],
        )
        for place, at in enumerate(order)
    ]


def _by_family(runs: Sequence[RunSpec]) -> dict[str, list[RunSpec]]:
    """Runs by family, each from its smallest data fraction up."""
    out: dict[str, list[RunSpec]] = {}
    for spec in sorted(runs, key=lambda spec: spec.data_fraction):
        out.setdefault(spec.family_key, []).append(spec)
    return out


def with_workers(study: Study, grid: Grid, speeds: Mapping[tuple[Any, ...], Speed], machine: Machine) -> Grid:
    """The grid with `train.workers: auto` resolved, the same for all runs of a family.

    One worker each, as long as there are runs enough to fill the lanes. More only for a family that would take longer than
    its share of the whole study and is worth twenty start-ups: it alone would be left running at the end. A family whose speed
    is not known has nothing left to train.
    """
    if study.train.workers != AUTO:
        return grid
    families = {
        key: members for key, members in grid.families().items() if all(speed_key(spec) in speeds for spec in members)
    }
    found = schedules(grid)
    seconds = {
        key: sum(_family_seconds(members, found[key], grid, speeds).values()) for key, members in families.items()
    }
    slots = machine.lanes(1)
    enough = max(sum(seconds.values()) / slots, START_UPS_HELD * GROUP_START_UP_S)
    chosen = dict.fromkeys(families, 1)
    for key, members in families.items():
        batch = members[0].optim.batch_size
        while seconds[key] / chosen[key] > enough and 2 * chosen[key] <= slots and batch % (2 * chosen[key]) == 0:
            chosen[key] *= 2
    runs = (_with_workers(spec, chosen.get(spec.family_key, 1)) for spec in grid.runs)
    return replace(grid, runs=tuple(runs))


def _with_workers(spec: RunSpec, workers: int) -> RunSpec:
    return spec if spec.train.workers == workers else replace(spec, train=replace(spec.train, workers=workers))


def schedules(grid: Grid) -> dict[str, FamilySchedule]:
    """The schedule of every family of the grid: its steps, branches and kept weights."""
    return {
        key: family_schedule(family, grid.of(family[0]).data.train_examples) for key, family in grid.families().items()
    }


def _family_seconds(
    family: Sequence[RunSpec], schedule: FamilySchedule, grid: Grid, speeds: Mapping[tuple[Any, ...], Speed]
) -> dict[str, float]:
    """Marginal seconds of each run, smallest fraction first: each extends the trunk and adds its own cooldown."""
    specs = {spec.run_key: spec for spec in family}
    executed = schedule.executed(specs)
    out: dict[str, float] = {}
    for run in schedule.runs:
        if run.run_key in specs:
            spec = specs[run.run_key]
            speed = speeds[speed_key(spec)]
            commits = len(run.kept) * (2 if run.branch is not None else 1) + 2
            examples = grid.of(spec).data.val_examples * len(run.kept)
            out[run.run_key] = (
                speed.build_s
                + executed[run.run_key] * speed.step_s / spec.train.workers
                + commits * speed.commit_s
                + examples * speed.eval_example_s
            )
    return out


def _makespan(seconds: Sequence[float], lanes: int) -> float:
    heap = [0.0] * lanes
    for cost in seconds:
        heapq.heapreplace(heap, heap[0] + cost)
    return max(heap)


def _spectra_seconds(
    study: Study, schedules: Mapping[str, RunSchedule], grid: Grid, runs: Sequence[RunSpec], machine: Machine
) -> float:
    if study.spectra.every == "never":
        return 0.0
    seen: set[tuple[str, int]] = set()
    total = 0.0
    for spec in runs:
        schedule = schedules[spec.run_key]
        for step in schedule.kept if study.spectra.every == "checkpoint" else schedule.kept[-1:]:
            # checkpoints of the trunk have equal content in all its runs and are computed once
            owner = spec.family_key if schedule.on_trunk(step) else spec.run_key
            if (owner, step) not in seen:
                seen.add((owner, step))
                total += sum(spectral.cost(shape, "embedding") for shape in grid.of(spec).matrices(spec.width))
    return total / max(1, machine.cpus)


def _planned(
    spec: RunSpec,
    schedule: RunSchedule,
    grid: Grid,
    speeds: Mapping[tuple[Any, ...], Speed],
    seconds: float,
    unit: int,
) -> PlannedRun:
    prepared, speed, steps = grid.of(spec), speeds[speed_key(spec)], schedule.steps
    counts, examples = prepared.counts(spec.width), steps * spec.optim.batch_size
    warnings = []
    if steps < FEW_STEPS:
        warnings.append(f"only {steps} steps")
    if spec.schedule.warmup > 0.5 * examples * prepared.data.samples_per_example:
        warnings.append("warmup is more than half the run")
    if workers := warning_of(spec):
        warnings.append(workers)
    return PlannedRun(
        run_key=spec.run_key,
        family_key=spec.family_key,
        width=spec.width,
        data_fraction=str(spec.data_fraction),
        seed=spec.seed,
        axes=dict(spec.axes),
        params_matmul=counts.params_matmul,
        steps=steps,
        samples=examples * prepared.data.samples_per_example,
        lr=scaled_optim(spec.optim).lr,
        flops_train=float(examples * counts.flops_train),
        seconds=seconds,
        disk_bytes=len(schedule.kept) * speed.weights_bytes + 2 * speed.state_bytes,
        unit=unit,
        warnings=tuple(warnings),
    )
