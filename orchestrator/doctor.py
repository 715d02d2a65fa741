"""`scalespec doctor`: whether this node can run a study, each failure with its remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from scalespec.orchestrator.errors import InputError

PACKAGES = ("ray", "torch", "mlflow", "datasets", "tiktoken", "pandas", "pyarrow", "scipy", "safetensors")
ENOUGH_DISK = 2 << 30
ENOUGH_MEMORY = 4 << 30


@dataclass(frozen=True)
class Finding:
    """One check."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(study: str | None = None) -> list[Finding]:
    """All checks of this node; with a study, of its storage, data and tracking too."""
    found = [*_versions(), *_hardware()]
    return found + (list(_study(study)) if study is not None else [])


def _versions() -> Iterator[Finding]:
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", good, platform.python_version(), "use CPython 3.11, 3.12 or 3.13")
    for requirement, version, fits in requirements():
        yield Finding(requirement, fits, version or "not installed", f"pip install '{requirement}'")


def requirements() -> list[tuple[str, str | None, bool]]:
    """Requirement, installed version and whether it fits, for the packages that decide whether a study can run."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("scalespec") or []
    except importlib.metadata.PackageNotFoundError:
        declared = list(PACKAGES)
    out: list[tuple[str, str | None, bool]] = []
    for text in declared:
        requirement = Requirement(text)
        if requirement.name not in PACKAGES or requirement.marker is not None:
            continue
        try:
            version: str | None = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        out.append((f"{requirement.name}{requirement.specifier}", version, fits))
    return out


def _hardware() -> Iterator[Finding]:
    import psutil
    import torch

    from scalespec.orchestrator.engine.cluster import cpus_here

    memory = psutil.virtual_memory().available
    yield Finding(
        "memory", memory > ENOUGH_MEMORY, f"{memory / 2**30:.1f} GiB free", "close other programs; Ray needs 4 GiB"
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("processors", True, f"{cpus_here()} CPUs, {len(gpus)} GPUs {', '.join(gpus)}".rstrip())
    driver = os.path.exists("/proc/driver/nvidia/version")
    if driver and not gpus:
        yield Finding(
            "gpu",
            False,
            "an NVIDIA driver is loaded, but torch sees no GPU",
            "install a CUDA build of torch, or check CUDA_VISIBLE_DEVICES",
        )
    shm = "/dev/shm"
    if os.path.isdir(shm):
        free = shutil.disk_usage(shm).free
        yield Finding(
            "shared memory",
            free > 600 << 20,
            f"{free / 2**30:.1f} GiB free in {shm}",
            "start the container with --shm-size=1g or more",
        )


def _study(path: str) -> Iterator[Finding]:
    from scalespec.orchestrator.design.stages import Stages
    from scalespec.orchestrator.store.files import StorageError, check_writable, study_root
    from scalespec.orchestrator.store.folder import StudyStore, free_bytes
    from scalespec.orchestrator.study import own_task
    from scalespec.orchestrator.study.expand import Expander
    from scalespec.orchestrator.study.file import load_study
    from scalespec.orchestrator.tracking.mlflow import target_of
    from scalespec.trainables.task import BUILT_IN

    try:
        study, points = load_study(path), Expander()
        if study.task["name"] in BUILT_IN:
            runs, further = Stages(study, points).known()
            more = f", at most {further} more" if further else ""
            said = f"{len(runs)} runs{more}, data of {len(points.prepared)} kinds read"
        else:  # to count its runs would be to run its code
            said = f"{own_task.admit(path, study.task['name'])[1]}, not imported here; scalespec plan reads its data"
    except InputError as error:
        yield Finding("study", False, str(error), "mend the study file")
        return
    yield Finding("study", True, said)
    try:
        store = StudyStore(study_root(study.storage, study.name))
        absent = _absent(store.local_path)
        try:
            check_writable(store.root)
        finally:
            for folder in absent:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
    except StorageError as error:
        yield Finding("storage", False, str(error), "choose a folder that every node can write")
        return
    yield Finding("storage", True, f"{store.root} can be written")
    free = free_bytes(store)
    if free is not None:
        yield Finding(
            "disk", free > ENOUGH_DISK, f"{free / 2**30:.1f} GiB free", "free some space, or choose another storage"
        )
    target = target_of(store, study.tracking.uri)
    if target is None:
        yield Finding("tracking", True, "no live tracking on this storage; `scalespec sync` writes it afterwards")
    elif target.uri.startswith("http"):
        yield _server(target.uri)
    else:
        yield Finding("tracking", True, target.uri)


def _absent(path: str | None) -> list[str]:
    """The folders of a path that do not exist yet, deepest first."""
    out = []
    while path and not os.path.exists(path):
        out.append(path)
        path = os.path.dirname(path)
    return out


def _server(uri: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:
            return Finding(
                "tracking", answer.status == 200, f"{uri} answers {answer.status}", "look at the server's log"
            )
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding(
            "tracking", False, f"{uri}: {error}", "start the server, or mend tracking.uri; the study runs without it"
        )
