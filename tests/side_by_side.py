"""Work for other processes, which find it here by its name."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def dies_once(number: int, mark: Path, parent: int) -> int:
    if number == 3 and os.getpid() != parent:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuses(number: int) -> int:
    raise ValueError(f"not {number}")
