"""One pack on Ray: the Tune trial that starts a Train worker group, and what each worker calls.

Three processes import this module before a worker trains anything: the trial, Train's controller and the worker. Torch and
the rest are imported where they are needed, so that the first two start in half the time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

COLLECTIVE_TIMEOUT_S = 600


def drive_pack(config: dict[str, Any]) -> dict[str, Any]:
    """The Tune trial: one worker group for the runs of one pack. Runs on the head, without a CPU."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        trainer(config["pack"]).fit()
    except Exception as error:  # the runs that have no result are named by the driver; other packs go on
        return {"pack_error": words_of(error)}
    return {"pack_error": ""}


def trainer(pack: Mapping[str, Any]) -> DataParallelTrainer:
    """The worker group of a pack: DDP processes, or one process that has nobody to talk to."""
    import ray.train

    from scalespec.orchestrator.store.files import below

    options: dict[str, Any] = {
        "train_loop_config": {name: pack[name] for name in ("root", "session", "threads", "code_version", "jobs")},
        "scaling_config": ray.train.ScalingConfig(
            num_workers=pack["workers"],
            use_gpu=pack["use_gpu"],
            resources_per_worker={"CPU": pack["cpus"]} | ({"GPU": 1} if pack["use_gpu"] else {}),
        ),
        "run_config": ray.train.RunConfig(
            # a name of its own for every attempt: Train would silently resume what it finds under an old one
            name=f"pack-{pack['session']}-{pack['index']:03d}-{attempt()}",
            storage_path=below(pack["root"], ".ray"),
            failure_config=ray.train.FailureConfig(max_failures=pack["max_failures"]),
        ),
    }
    if pack["workers"] == 1 and not pack["use_gpu"]:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        return _without_datasets(DataParallelTrainer)(_train_pack, **options)
    from ray.train.torch import TorchConfig, TorchTrainer

    backend = "nccl" if pack["use_gpu"] else "gloo"
    torch_config = TorchConfig(backend=backend, timeout_s=COLLECTIVE_TIMEOUT_S)
    return _without_datasets(TorchTrainer)(_train_pack, torch_config=torch_config, **options)


def _without_datasets(kind: type[DataParallelTrainer]) -> type[DataParallelTrainer]:
    """The trainer without the process that serves shards of Ray Datasets to workers: 3 s of start-up for data we do not have."""

    class PackTrainer(kind):  # type: ignore[misc]  # Ray has no types
        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()
            return [callback for callback in made if type(callback).__name__ != "DatasetsCallback"]

    return PackTrainer


def _train_pack(config: dict[str, Any]) -> None:
    from scalespec.orchestrator.engine.worker import run_pack

    run_pack(config)


def words_of(error: Exception) -> str:
    """What ended a pack, in one line: of a worker's error the last line, since the first ones are its traceback."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    cause = next((failures[rank] for rank in sorted(failures)), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else type(cause).__name__}"


def attempt() -> str:
    """A name that no other attempt has."""
    import uuid

    return uuid.uuid4().hex[:8]
