"""From studies of one grid to runs, the data behind them read once however many stages use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scalespec.orchestrator.study import grid
from scalespec.orchestrator.study.grid import Grid
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.spec import RunSpec


@dataclass
class Expander:
    """Expands the grids of one study."""

    gpus: bool = False
    """Whether the runs will train on GPUs."""
    prepared: dict[tuple[Any, ...], Prepared] = field(default_factory=dict)

    def __call__(self, study: Study) -> Sequence[RunSpec]:
        """Every run of a grid. Raises InputError."""
        return grid.expand(study, gpus=self.gpus, prepared=self.prepared).runs

    def grid(self, runs: Sequence[RunSpec]) -> Grid:
        """Runs that were expanded here, with their data."""
        return Grid(tuple(runs), self.prepared)
