"""What a study will do before it does it: packs of runs for each lane, and the time, disk and money they will take."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scalespec.analysis import spectral
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.file import Study
from scalespec.orchestrator.study.grid import Grid, data_key
from scalespec.orchestrator.study.resources import Machine
from scalespec.trainables.family import branch_of, checkpoint_steps, steps_of
from scalespec.trainables.keys import AUTO
from scalespec.trainables.probe import Speed, measure
from scalespec.trainables.rules.flops import CONVENTION
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec

PACK_START_UP_S = 18.0
"""Starting one worker group on each lane of two CPUs: trial, Train's controller and actors, workers importing torch."""

STUDY_START_UP_S = 14.0
"""Starting Ray, reading the data and making the plan. `python benchmarks/orchestration.py` prints it together with the pack's."""

STUDY_END_S = 30.0
"""Ray Data's start, tables, fits with their bootstrap and the report."""

START_UPS_HELD = 20
"""A further pack, beyond one a lane, must hold so many times its own start-up."""

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
    pack: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Pack:
    """Runs that execute one after another in one warm worker group."""

    index: int
    run_keys: tuple[str, ...]
    workers: int
    seconds: float
    """Estimated, start-up excluded."""


@dataclass(frozen=True)
class Plan:
    """All of a study's runs, or those that are left of it."""

    study: str
    runs: tuple[PlannedRun, ...]
    packs: tuple[Pack, ...]
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Unit:
    """What must stay in one pack: a family that shares a trunk, or a single run."""

    runs: tuple[RunSpec, ...]
    seconds: float


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
    study: Study, grid: Grid, runs: Sequence[RunSpec], speeds: Mapping[tuple[Any, ...], Speed], machine: Machine
) -> Plan:
    """Packs `runs` (those still to be trained) and estimates what they take. A pure function of the measured speeds."""
    seconds = {
        key: cost for spec_runs in _families(runs) for key, cost in _family_seconds(spec_runs, grid, speeds).items()
    }
    units = [
        Unit(part, sum(seconds[spec.run_key] for spec in part))
        for family in _families(runs)
        for part in ([tuple(family)] if shares_trunk(family) else [(spec,) for spec in family])
    ]
    packs = _all_packs(units, machine)
    pack_of = {key: pack.index for pack in packs for key in pack.run_keys}
    planned = tuple(_planned(spec, grid, speeds, seconds[spec.run_key], pack_of[spec.run_key]) for spec in runs)
    lanes = max((machine.lanes(pack.workers) for pack in packs), default=1)
    training = _makespan([pack.seconds + PACK_START_UP_S for pack in packs], lanes)
    spectra = _spectra_seconds(study, grid, runs, machine)
    wall = STUDY_START_UP_S + training + spectra + STUDY_END_S if runs else 0.0
    busy = sum(pack.seconds for pack in packs)
    price = study.resources.price_per_hour
    return Plan(
        study=study.name,
        runs=planned,
        packs=packs,
        lanes=lanes,
        seconds=wall,
        start_up_share=PACK_START_UP_S * len(packs) / (busy + PACK_START_UP_S * len(packs)) if packs else 0.0,
        spectra_seconds=spectra,
        disk_bytes=sum(run.disk_bytes for run in planned),
        cost_usd=None if price is None else price * (busy + PACK_START_UP_S * len(packs)) / 3600,
        flops_train=sum(run.flops_train for run in planned),
        flops_convention=CONVENTION,
    )


def with_workers(study: Study, grid: Grid, speeds: Mapping[tuple[Any, ...], Speed], machine: Machine) -> Grid:
    """The grid with `train.workers: auto` resolved, the same for all runs of a family.

    One worker each, as long as there are runs enough to fill the lanes. More only for a family that would take longer than
    its share of the whole study and is worth twenty start-ups: it alone would be left running at the end.
    """
    if study.train.workers != AUTO:
        return grid
    families = {members[0].family_key: members for members in _families(grid.runs)}
    seconds = {key: sum(_family_seconds(members, grid, speeds).values()) for key, members in families.items()}
    slots = machine.lanes(1)
    enough = max(sum(seconds.values()) / slots, START_UPS_HELD * PACK_START_UP_S)
    chosen = dict.fromkeys(families, 1)
    for key, members in families.items():
        batch = members[0].optim.batch_size
        while seconds[key] / chosen[key] > enough and 2 * chosen[key] <= slots and batch % (2 * chosen[key]) == 0:
            chosen[key] *= 2
    runs = (replace(spec, train=replace(spec.train, workers=chosen[spec.family_key])) for spec in grid.runs)
    return replace(grid, runs=tuple(runs))


def _families(runs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    out: dict[str, list[RunSpec]] = {}
    for spec in sorted(runs, key=lambda spec: spec.data_fraction):
        out.setdefault(spec.family_key, []).append(spec)
    return list(out.values())


def shares_trunk(family: Sequence[RunSpec]) -> bool:
    """Whether these runs of one family are trained as a trunk with a branch each."""
    return len(family) > 1 and all(spec.train.reuse_trunk and branch_of(spec, 1) is not None for spec in family)


def steps_in(spec: RunSpec, grid: Grid) -> int:
    """Optimizer steps of a run."""
    return steps_of(grid.of(spec).data.train_examples, spec.data_fraction, spec.train.epochs, spec.optim.batch_size)


def _family_seconds(family: Sequence[RunSpec], grid: Grid, speeds: Mapping[tuple[Any, ...], Speed]) -> dict[str, float]:
    """Marginal seconds of each run, smallest fraction first: each extends the trunk and adds its own cooldown."""
    out: dict[str, float] = {}
    trunk = 0
    for spec in family:
        speed, steps = speeds[speed_key(spec)], steps_in(spec, grid)
        branch = branch_of(spec, steps) if shares_trunk(family) else None
        executed = steps if branch is None else max(0, branch - trunk) + steps - branch
        trunk = max(trunk, branch or 0)
        kept = checkpoint_steps(steps, spec.train.checkpoints)
        commits = len(kept) * (2 if branch is not None else 1) + 2
        examples = grid.of(spec).data.val_examples * len(kept)
        out[spec.run_key] = (
            speed.build_s
            + executed * speed.step_s / spec.train.workers
            + commits * speed.commit_s
            + examples * speed.eval_example_s
        )
    return out


def _all_packs(units: Sequence[Unit], machine: Machine) -> tuple[Pack, ...]:
    """Packs for every number of workers that occurs; worker groups of different size never share one."""
    packs: list[Pack] = []
    for workers in sorted({unit.runs[0].train.workers for unit in units}, reverse=True):
        same = [unit for unit in units if unit.runs[0].train.workers == workers]
        for members in pack_units(same, machine.lanes(workers)):
            keys = tuple(spec.run_key for unit in members for spec in unit.runs)
            packs.append(Pack(len(packs), keys, workers, sum(unit.seconds for unit in members)))
    order = sorted(packs, key=lambda pack: -pack.seconds)
    return tuple(Pack(index, pack.run_keys, pack.workers, pack.seconds) for index, pack in enumerate(order))


def pack_units(units: Sequence[Unit], lanes: int, start_up: float = PACK_START_UP_S) -> list[list[Unit]]:
    """Units into as many packs as there are lanes, longest first; more only where each would hold 20 start-ups.

    Longest processing time first is within 4/3 of the best makespan (Graham 1969, doi:10.1137/0117039).
    """
    total = sum(unit.seconds for unit in units)
    count = min(len(units), max(lanes, int(total // (START_UPS_HELD * start_up))))
    packs: list[list[Unit]] = [[] for _ in range(count)]
    heap = [(0.0, index) for index in range(count)]
    for unit in sorted(units, key=lambda unit: -unit.seconds):
        load, index = heapq.heappop(heap)
        packs[index].append(unit)
        heapq.heappush(heap, (load + unit.seconds, index))
    return [pack for pack in packs if pack]


def _makespan(seconds: Sequence[float], lanes: int) -> float:
    heap = [0.0] * lanes
    for cost in seconds:
        heapq.heapreplace(heap, heap[0] + cost)
    return max(heap)


def _spectra_seconds(study: Study, grid: Grid, runs: Sequence[RunSpec], machine: Machine) -> float:
    if study.spectra.every == "never":
        return 0.0
    seen: set[tuple[str, int]] = set()
    total = 0.0
    for family in _families(runs):
        shared = shares_trunk(family)
        for spec in family:
            steps = steps_in(spec, grid)
            branch = branch_of(spec, steps) if shared else None
            kept = checkpoint_steps(steps, spec.train.checkpoints)
            for step in kept if study.spectra.every == "checkpoint" else kept[-1:]:
                # checkpoints of the trunk have equal content in all its runs and are computed once
                owner = spec.family_key if branch is not None and step <= branch else spec.run_key
                if (owner, step) not in seen:
                    seen.add((owner, step))
                    total += sum(spectral.cost(shape, "embedding") for shape in grid.of(spec).matrices(spec.width))
    return total / max(1, machine.cpus)


def _planned(
    spec: RunSpec, grid: Grid, speeds: Mapping[tuple[Any, ...], Speed], seconds: float, pack: int
) -> PlannedRun:
    prepared, speed, steps = grid.of(spec), speeds[speed_key(spec)], steps_in(spec, grid)
    counts, examples = prepared.counts(spec.width), steps * spec.optim.batch_size
    kept = len(checkpoint_steps(steps, spec.train.checkpoints))
    warnings = []
    if steps < FEW_STEPS:
        warnings.append(f"only {steps} steps")
    if spec.schedule.warmup > 0.5 * examples * prepared.data.samples_per_example:
        warnings.append("warmup is more than half the run")
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
        disk_bytes=kept * speed.weights_bytes + 2 * speed.state_bytes,
        pack=pack,
        warnings=tuple(warnings),
    )
