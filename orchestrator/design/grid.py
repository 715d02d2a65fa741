"""A grid asks once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalespec.orchestrator.design.ask import Ask, Seen, digest
from scalespec.trainables.spec import RunSpec


def ask(name: str, role: str, points: Sequence[RunSpec], basis: Sequence[Any], seen: Seen, *, round_: int = 0) -> Ask:
    """All points at once; nothing more when they are asked for already, done when each has its result.

    `basis` is what the points follow from: the stage's definition and what it read.
    """
    mark = digest(*basis, [spec.run_key for spec in points])
    have = seen.of(name).get(round_)
    if have is None or have.digest != mark:
        return Ask(points=tuple(points), why=f"{name}: every run", stage=name, round=round_, role=role, digest=mark)
    left = seen.unfinished(points)
    return Ask(done=not left, why=f"{name}: {len(left)} runs left" if left else "", stage=name, left=left)
