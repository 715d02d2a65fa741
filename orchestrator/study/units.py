"""The unit of work: what must stay in one lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """The runs of a family that share a trunk, or a single run: one worker group trains them one after another."""

    number: int
    family_key: str
    run_keys: tuple[str, ...]
    workers: int
    seconds: float
    """Estimated, the start of the worker group excluded."""
    jobs: tuple[Mapping[str, Any], ...] = ()
    """One for each run, as `engine.worker.Job.to_json`; empty in a plan."""
