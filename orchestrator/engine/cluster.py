"""Connecting to Ray: a private instance on this machine, the cluster of a job, or one at an address."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study.resources import Machine

ENVIRONMENT = {
    # Train's controller polls its workers this often; the default of 2 s is paid at the end of every lane
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # a rank that skips a collective would otherwise hang its group for ever
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # a searcher of one's own gets one pending trial, and lanes would start one after the other
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    # the experiment's state is never read back
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # otherwise Tune swallows Ctrl-C and the study would go on to its report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TQDM_DISABLE": "1",
}

CONNECT_S = 10.0

OBJECT_STORE_BYTES = 512 << 20
"""Only references and small tables pass through the object store."""


@contextlib.contextmanager
def connected(address: str | None = None, paths: Sequence[str] = ()) -> Iterator[Machine]:
    """Ray for the length of a `with`; yields what its nodes offer. `paths`: where workers find a task of the user's own.

    Without an address and outside a job: a private instance on all of this machine's CPUs and GPUs, on loopback, with a
    token of its own that is never written to disk. An instance that is connected already is used and left as it is.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.pop("RAY_ADDRESS", None)  # Ray takes an empty one for a malformed address
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if address is None:
        # on Linux nothing else keeps Ray's servers off the other interfaces: without it they listen on every one
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # a process for each worker group that watches for nodes about to be taken away: there is one node
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    known = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *paths]
    if any(known):
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in known if path))
    import ray  # after the environment is set, since Ray reads it on import

    if ray.is_initialized():
        yield machine()
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        # Ray puts the folder in which it is started first on the path of its workers: whatever lies there, such as a yaml.py
        # in a folder that was sent to somebody, would hide what is installed
        with contextlib.chdir("/"):
            if address is None:
                ray.init(
                    address="local",
                    num_cpus=cpus_here(),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **quiet,
                )
            else:
                _check_listening(address)
                ray.init(address=address, runtime_env={"env_vars": worker_environment()}, **quiet)
    except Exception as error:  # Ray raises whatever its processes did, a plain Exception where one took too long
        where = f" at {address}" if address else ""
        words = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        remedy = "" if address else "; on a busy machine give the command again"
        raise InputError(f"cannot start or reach Ray{where}: {words}{remedy}") from error
    try:
        gc.freeze()  # what is imported by now stays: to look through it for garbage takes a third of a second each time
        yield machine()
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises ConnectionError where nothing listens at HOST:PORT: Ray would try again for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def worker_environment() -> dict[str, str]:
    """What workers on other nodes must find in their environment.

    Without what the job's own runtime environment sets: Ray refuses a variable that is given twice, even with one value.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {key: os.environ[key] for key in ENVIRONMENT if key in os.environ and key not in given}


def cpus_here() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> Machine:
    """CPUs and GPUs of the connected cluster."""
    import ray

    found: dict[str, Any] = ray.cluster_resources()
    return Machine(cpus=int(found.get("CPU", 0)), gpus=int(found.get("GPU", 0)))


def on_a_gpu(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed on a node of the connected cluster that has a GPU."""
    import ray

    return ray.get(ray.remote(num_gpus=1)(function).remote(*arguments))


def this_machine() -> Machine:
    """The same for this machine alone, without Ray."""
    import torch

    return Machine(cpus=cpus_here(), gpus=torch.cuda.device_count())
