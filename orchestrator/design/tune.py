"""Bracketing a rate: rounds of probes until the best lies inside, then the runs with the winner.

Each cell of the grid (all its axes but seed and data fraction) has a bracket of its own on a ladder rate = start · factor^i. A
round is asked for as a whole and decided as a whole, from finished runs, on the selection half of the validation set: the report
half and other seeds have no part in the choice. A diverged run counts as worse than any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalespec.orchestrator.design.ask import Ask, Seen, digest, fingerprint
from scalespec.trainables.spec import RunSpec

Cell = tuple[Any, ...]
"""The values of the axes that a bracket belongs to."""

Points = Callable[[Cell, Sequence[float]], Sequence[RunSpec]]
"""(cell, rates) → the probes of these rates in this cell."""


@dataclass(frozen=True)
class Bracket:
    """What is known of one cell: position on the ladder → mean selection loss over seeds (infinite where a run diverged)."""

    losses: Mapping[int, float]

    @property
    def best(self) -> int:
        """The position with the lowest loss; of equals the smaller rate, which is the safer one."""
        return min(self.losses, key=lambda i: (self.losses[i], i))

    @property
    def inside(self) -> bool:
        """Whether a finite best has a worse rate on either side of it."""
        best = self.best
        return math.isfinite(self.losses[best]) and min(self.losses) < best < max(self.losses)

    def next(self) -> list[int]:
        """The positions to try: two beyond the edge at which the best lies; where all diverged, lower ones."""
        low, high = min(self.losses), max(self.losses)
        if not math.isfinite(self.losses[self.best]) or self.best == low:
            return [low - 2, low - 1]
        return [high + 1, high + 2]


def first(count: int) -> list[int]:
    """`count` positions around the rate that the study names."""
    return list(range(-(count // 2), count - count // 2))


@dataclass(frozen=True)
class Tuning:
    """One `tune:` stage with its readings filled in."""

    name: str
    role: str
    start: float
    factor: float
    count: int
    rounds: int
    cells: tuple[Cell, ...]
    points: Points
    final: Callable[[Mapping[Cell, float]], Sequence[RunSpec]]
    """Cell → winning rate: the runs that the stage is for."""
    basis: tuple[Any, ...]

    def rate(self, position: int) -> float:
        """Of a position on the ladder; three digits, so that a ladder walked from elsewhere meets the same rates."""
        return float(f"{self.start * self.factor**position:.3g}")

    def ask(self, seen: Seen) -> Ask:
        """The next round, or the winners' runs once every bracket is closed or the rounds are spent."""
        tried: dict[Cell, dict[int, float]] = {cell: {} for cell in self.cells}
        asked: list[RunSpec] = []
        for number in range(self.rounds):
            wanted = {cell: self._positions(tried[cell]) for cell in self.cells}
            wanted = {cell: positions for cell, positions in wanted.items() if positions}
            if not wanted:
                break
            made = {
                cell: {i: self.points(cell, [self.rate(i)]) for i in positions} for cell, positions in wanted.items()
            }
            points = [spec for by_rate in made.values() for specs in by_rate.values() for spec in specs]
            step = self._round(number, "probe", points, asked, seen)
            if step is not None:
                cells = f"{len(wanted)} of {len(self.cells)} brackets"
                return replace(step, why=f"{self.name}: {cells}, round {number + 1}") if step.points else step
            for cell, by_rate in made.items():
                tried[cell] |= {i: _loss(specs, seen) for i, specs in by_rate.items()}
            asked += points
        brackets = {cell: Bracket(losses) for cell, losses in tried.items()}
        winners = {cell: self.rate(bracket.best) for cell, bracket in brackets.items()}
        outside = [cell for cell, bracket in brackets.items() if not bracket.inside]
        last = self._round(self.rounds, self.role, list(self.final(winners)), asked, seen)
        if last is None:
            return Ask(done=True, stage=self.name)
        if not last.points:
            return last
        said = (
            f"{self.name}: the best rate of {len(self.cells) - len(outside)} of {len(self.cells)} brackets lies inside"
        )
        return replace(last, why=f"{said}; minimum_outside: {_words(outside)}" if outside else said)

    def _positions(self, tried: Mapping[int, float]) -> list[int]:
        if not tried:
            return first(self.count)
        bracket = Bracket(tried)
        return [] if bracket.inside else bracket.next()

    def _round(
        self, number: int, role: str, points: Sequence[RunSpec], basis: Sequence[RunSpec], seen: Seen
    ) -> Ask | None:
        """The ask of a round; an empty one while its runs are trained; None when all have results."""
        mark = digest(*self.basis, number, fingerprint(seen, basis), [spec.run_key for spec in points])
        have = seen.of(self.name).get(number)
        if have is None or have.digest != mark:
            keys = tuple(spec.run_key for spec in basis)
            return Ask(points=tuple(points), stage=self.name, round=number, role=role, digest=mark, seen=keys)
        left = seen.unfinished(points)
        if left:
            return Ask(why=f"{self.name}: {len(left)} runs left", stage=self.name, left=left)
        if role == "probe" and (failed := seen.failed(have.points)):
            return Ask(
                why=f"{self.name}: stopped, {len(failed)} of its probes failed ({failed[0]})",
                stage=self.name,
                done=True,
            )
        return None

    def most(self) -> int:
        """A bound of the runs still unknown at the start: every later round in every cell, and the winners' runs."""
        probes = len(self.points(self.cells[0], [self.start])) if self.cells else 0
        winners = len(self.final(dict.fromkeys(self.cells, self.start)))
        return (self.rounds - 1) * 2 * len(self.cells) * probes + winners


def _loss(specs: Sequence[RunSpec], seen: Seen) -> float:
    """Mean over seeds; infinite where one diverged."""
    found = [seen.results[spec.run_key] for spec in specs]
    losses = [result.get("val_loss_select") if result.get("status") == "done" else None for result in found]
    return math.inf if any(loss is None for loss in losses) else sum(losses) / len(losses)  # type: ignore[arg-type]


def _words(cells: Sequence[Cell]) -> str:
    listed = ", ".join("/".join(map(str, cell)) or "the one cell" for cell in cells[:4])
    return listed + (" …" if len(cells) > 4 else "")
