"""A task of the user's own: found beside the study file or installed, and named before anything of it runs."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

from scalespec.orchestrator.errors import InputError
from scalespec.trainables.task import BUILT_IN


def admit(study_file: str | os.PathLike[str], task: str) -> tuple[list[str], str]:
    """Makes the module of `task` importable where it lies beside the study file.

    Returns the folders that workers need on their path, and a line that names the file that will be imported and its digest;
    nothing for a built-in task. The module itself is not imported here. Raises InputError where there is none.
    """
    module, colon, _ = task.partition(":")
    if task in BUILT_IN or not colon:
        return [], ""
    folder = str(Path(study_file).resolve().parent)
    beside = importlib.machinery.PathFinder.find_spec(module.partition(".")[0], [folder])
    if beside is not None and folder not in sys.path:
        sys.path.append(folder)
    found = beside or importlib.util.find_spec(module.partition(".")[0])
    origin = None if found is None else _source(found, module)
    if origin is None:
        raise InputError(
            f"task {task!r}: no module {module} beside {study_file}, nor installed; put {module.replace('.', '/')}.py there"
        )
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()[:12]
    return [folder] if beside else [], f"task {task}: {origin} (sha256 {digest}…)"


def _source(top: importlib.machinery.ModuleSpec, module: str) -> Path | None:
    """The file of a module inside the package `top`, found without importing anything."""
    rest = module.split(".")[1:]
    if not rest:
        return Path(top.origin) if top.origin and Path(top.origin).is_file() else None
    paths = (Path(folder, *rest) for folder in top.submodule_search_locations or ())
    files = (file for path in paths for file in (path / "__init__.py", path.with_suffix(".py")))
    return next((file for file in files if file.is_file()), None)
