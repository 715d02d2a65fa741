"""All packs of a study on Ray Tune; what one of them does is in `pack`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scalespec.orchestrator.engine.pack import drive_pack
from scalespec.orchestrator.engine.worker import MAX_DEATHS, Job
from scalespec.orchestrator.store.files import below
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study.plan import Pack
from scalespec.orchestrator.study.resources import Machine

DRIVER = {"node:__internal_head__": 0.001}
"""A pack's driver takes no CPU: with 0.01 of one each, two one-CPU lanes would run one after the other on two CPUs."""


class NoRoomError(ValueError):
    """A worker group that no node, or not the whole cluster, can hold."""


@dataclass(frozen=True)
class Sweep:
    """Everything that the drivers of packs need to know; plain values, since Ray pickles it."""

    root: str
    session: str
    threads: int
    use_gpu: bool
    code_version: str | None


def train_packs(packs: Sequence[Pack], jobs: Mapping[str, Job], sweep: Sweep, machine: Machine) -> dict[int, str]:
    """Runs all packs, those with most workers first, and returns what went wrong with a pack itself, by its index.

    Runs are judged by their results on disk alone. Raises NoRoomError before anything starts: a static cluster would wait
    for ever for a worker group that cannot be placed.
    """
    from ray import tune

    for pack in packs:
        check_room(pack.workers, machine)
    errors: dict[int, str] = {}
    for workers in sorted({pack.workers for pack in packs}, reverse=True):
        configs = [
            {
                "index": pack.index,
                "workers": pack.workers,
                "cpus": machine.cpus_per_worker,
                "jobs": [jobs[key].to_json() for key in pack.run_keys],
                "max_failures": MAX_DEATHS * len(pack.run_keys) + 1,
                **asdict(sweep),
            }
            for pack in packs
            if pack.workers == workers
        ]
        tuner = tune.Tuner(
            tune.with_resources(drive_pack, DRIVER),
            param_space={"pack": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=machine.lanes(workers), reuse_actors=False),
            run_config=tune.RunConfig(
                name=f"tune-{sweep.session}-{workers}",
                storage_path=below(sweep.root, ".ray"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
        for result in tuner.fit():
            config = (result.config or {}).get("pack", {})
            error = str(result.error) if result.error else (result.metrics or {}).get("pack_error")
            if error:
                errors[config.get("index", -1)] = error
    return errors


def check_room(workers: int, machine: Machine) -> None:
    """Raises NoRoomError where `workers` do not fit."""
    have, need = (machine.gpus, workers) if machine.gpus else (machine.cpus, workers * machine.cpus_per_worker)
    if need > have:
        kind = "GPUs" if machine.gpus else "CPUs"
        raise NoRoomError(
            f"train.workers: {workers} workers need {need} {kind}, Ray has {have}; lower train.workers or add nodes"
        )


def results_of(store: StudyStore, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The committed results among `keys`."""
    found = ((key, store.run(key).result()) for key in keys)
    return {key: result for key, result in found if result is not None}
