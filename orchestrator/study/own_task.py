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
    if beside is not None:
        if folder not in sys.path:
            sys.path.append(folder)
        origin = _file(Path(folder), module)
    else:
        found = importlib.util.find_spec(module.partition(".")[0])
        if found is None:
            raise InputError(
                f"task {task!r}: no module {module} beside {study_file}, nor installed; put {module.replace('.', '/')}.py there"
            )
        origin = Path(found.origin) if found.origin else None
    if origin is None or not origin.is_file():
        return [folder] if beside else [], f"task {task}"
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()[:12]
    return [folder] if beside else [], f"task {task}: {origin} (sha256 {digest}…)"


def _file(folder: Path, module: str) -> Path | None:
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
