"""How `scalespec` is typed on this machine, so that every command that is printed works where it is read."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`scalespec` where the shell finds this very installation; else the path of its script, or Python with `-m`."""
    script = Path(sys.executable).with_name("scalespec")
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m scalespec"
    found = shutil.which("scalespec")
    if found is not None and os.path.realpath(found) == os.path.realpath(script):
        return "scalespec"
    here = os.path.relpath(script)
    return shlex.quote(str(script) if here.startswith("..") else here)


def command(*words: str) -> str:
    """A line to paste: the program and its arguments, quoted where a shell needs it."""
    return " ".join([program(), *(shlex.quote(word) for word in words)])
