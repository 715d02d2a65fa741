"""Which code this is: the version, and the git commit of the working directory where it has one."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path


def code_version() -> str | None:
    """Version of scalespec, and the git commit of the working directory where it has one."""
    try:
        version = importlib.metadata.version("scalespec")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    commit = os.environ.get("SCALESPEC_GIT_COMMIT") or git_commit()
    return f"{version}+{commit[:12]}" if commit else version


def git_commit() -> str | None:
    """The commit of the working directory's repository, or None."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@functools.cache
def fingerprint() -> str:
    """sha256 of scalespec's own source, 12 digits: two processes with equal ones run the same code."""
    folders = {name: Path(__file__).parents[1] / name for name in ("analysis", "orchestrator", "trainables")}
    digest = hashlib.sha256()
    for name, folder in folders.items():
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{file.relative_to(folder)}".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
