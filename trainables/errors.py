"""What cannot be trained, in words that name the remedy."""

from __future__ import annotations


class TaskError(ValueError):
    """A task, an option or a data source that cannot be used; the message names it and the remedy."""


class DataChangedError(RuntimeError):
    """The data read here is not the data that the run was planned with."""
