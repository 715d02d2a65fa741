"""What cannot be trained, in words that name the remedy."""

from __future__ import annotations


class TaskError(ValueError):
    """A task, an option or a data source that cannot be used; the message names it and the remedy."""


class DataChangedError(RuntimeError):
    """The data read here is not the data that the run was planned with."""


class DivergedError(RuntimeError):
    """The run has no finite result; `reason` is `non_finite` or `loss_bound`."""

    def __init__(self, reason: str, step: int, detail: str) -> None:
        super().__init__(f"{reason}: {detail} at step {step}")
        self.reason, self.step = reason, step
