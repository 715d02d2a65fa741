"""What a study may use of a machine or cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What a study may use: one lane runs one worker group at a time."""

    cpus: int
    gpus: int
    cpus_per_worker: int = 1

    def lanes(self, workers: int) -> int:
        """Worker groups of `workers` that fit at once."""
        return max(1, self.gpus // workers if self.gpus else self.cpus // (workers * self.cpus_per_worker))
