"""From studies of one grid to runs, the data behind them read once however many stages use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scalespec.orchestrator.study import checks, grid
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
    _runs: dict[str, tuple[RunSpec, ...]] = field(default_factory=dict)

    def __call__(self, study: Study) -> Sequence[RunSpec]:
        """Every run of a grid, expanded once however often it is asked for. Raises InputError."""
        written = json.dumps(checks.plain(study), sort_keys=True, default=str)
        if written not in self._runs:
            self._runs[written] = grid.expand(study, gpus=self.gpus, prepared=self.prepared).runs
        return self._runs[written]

    def grid(self, runs: Sequence[RunSpec]) -> Grid:
        """Runs that were expanded here, with their data."""
        return Grid(tuple(runs), self.prepared)
