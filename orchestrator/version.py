"""Which code this is: the version, and the git commit of the working directory where it has one."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess


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
