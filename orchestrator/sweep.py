"""Packs on Ray: a Tune trial is a pack, a Train worker group executes it. What they do is decided elsewhere; see `worker`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plan import Machine, Pack
from orchestrator.store import StudyStore
from orchestrator.worker import MAX_DEATHS, Job

DRIVER = {"node:__internal_head__": 0.001}
"""A pack's driver takes no CPU: with 0.01 of one each, two one-CPU lanes would run one after the other on two CPUs."""

COLLECTIVE_TIMEOUT_S = 600


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
                "sweep": sweep,
                "jobs": [jobs[key].to_json() for key in pack.run_keys],
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
                storage_path=f"{sweep.root}/.ray",
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


def drive_pack(config: dict[str, Any]) -> dict[str, Any]:
    """The Tune trial: one worker group for the runs of one pack. Runs on the head, without a CPU."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    pack = config["pack"]
    sweep: Sweep = pack["sweep"]
    resources: dict[str, float] = {"CPU": pack["cpus"]}
    if sweep.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        _train_pack,
        train_loop_config={
            "root": sweep.root,
            "session": sweep.session,
            "threads": sweep.threads,
            "code_version": sweep.code_version,
            "jobs": pack["jobs"],
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=pack["workers"], use_gpu=sweep.use_gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if sweep.use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=ray.train.RunConfig(
            # a name of its own for every attempt: Train would silently resume what it finds under an old one
            name=f"pack-{sweep.session}-{pack['index']:03d}-{attempt()}",
            storage_path=f"{sweep.root}/.ray",
            failure_config=ray.train.FailureConfig(max_failures=MAX_DEATHS * len(pack["jobs"]) + 1),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # the runs that have no result are named by the driver; other packs go on
        return {"pack_error": words_of(error)}
    return {"pack_error": ""}


def words_of(error: Exception) -> str:
    """What ended a pack, in one line: of a worker's error the last line, since the first ones are its traceback."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    cause = next((failures[rank] for rank in sorted(failures)), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else type(cause).__name__}"


def _train_pack(config: dict[str, Any]) -> None:
    from orchestrator.worker import run_pack

    run_pack(config)


def attempt() -> str:
    """A name that no other attempt has."""
    import uuid

    return uuid.uuid4().hex[:8]


def results_of(store: StudyStore, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The committed results among `keys`."""
    found = ((key, store.run(key).result()) for key in keys)
    return {key: result for key, result in found if result is not None}
