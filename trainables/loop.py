"""Training one run from wherever its folders say to its result: the same under Ray Train, torchrun or plain Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from scalespec.trainables import result, trunk
from scalespec.trainables.checkpoints import RunFolder
from scalespec.trainables.errors import DataChangedError, DivergedError
from scalespec.trainables.evals.validation import VALIDATION
from scalespec.trainables.family import is_logged, run_schedule
from scalespec.trainables.group import Group
from scalespec.trainables.io import ValRows
from scalespec.trainables.prepared import Prepared
from scalespec.trainables.spec import RunSpec
from scalespec.trainables.training import Training

LOOP_VERSION = 1
"""Raise by hand when the same spec gives other numbers; it is part of every run's key."""


class Trainer:
    """One run in one process of its group."""

    def __init__(
        self,
        spec: RunSpec,
        prepared: Prepared,
        io: RunFolder,
        trunk: RunFolder | None = None,
        trunk_kept: Collection[int] = (),
        group: Group | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`trunk`: the folder of the family's trunk, where the run branches from one; `trunk_kept`: the steps at which some
        run of the family wants the trunk's weights (`FamilySchedule.trunk_kept`). `beat` is called every step.

        Raises DataChangedError where the data is not that of the spec.
        """
        data = prepared.data
        if data.identity != spec.data_identity:
            raise DataChangedError(
                f"data_changed: {spec.data.source} gives sha256 {data.identity[:12]}… here, planned with {spec.data_identity[:12]}…"
            )
        self.io, self.trunk, self.trunk_kept = io, trunk, trunk_kept
        self.schedule = run_schedule(spec, data.train_examples, shares_trunk=trunk is not None)
        self.training = Training(spec, prepared, self.schedule.steps, group, beat)

    def run(self) -> dict[str, Any]:
        """Trains to the end, from wherever the folders say, and commits the result. Divergence is a result."""
        training, steps = self.training, self.schedule.steps
        training.began = time.monotonic()
        status, error, val = "done", None, None
        try:
            self._to_start()
            training.advance(steps, self.io, self.schedule.kept)
            if not is_logged(steps):
                training.log(self.io)
            val = self._last()
        except DivergedError as diverged:
            status, error, val = "diverged", str(diverged), None
        columns = result.columns(training, status, error, val)
        if training.group.rank == 0:
            self.io.finish(columns, val)
        return columns

    def _to_start(self) -> None:
        """Goes on from the run's newest state, or from its branch of the trunk, or begins."""
        training = self.training
        own = training.load(self.io)
        if own is not None:
            training.restore(own)
            training.seconds_before = float(own.meta["seconds"])
        elif self.trunk is not None and self.schedule.branch is not None:
            trunk.to_branch(training, self.schedule, self.io, self.trunk, self.trunk_kept)
        if training.step == 0 and own is None:
            training.look(self.io, kept=True)

    def _last(self) -> ValRows:
        """What is measured at the end. Raises DivergedError where the validation loss is not finite."""
        training, step = self.training, self.training.step
        evaluations, model = training.evaluations, training.learner.model
        val = evaluations.measure([VALIDATION], model, step).rows
        assert val is not None
        if not np.isfinite(val.loss).all():
            raise DivergedError("non_finite", step, "validation loss")
        last = [eval for eval in evaluations.evals if eval.when == "last"]
        found = evaluations.measure(last, model, step)
        training.record(self.io, found.metrics)
        if found.media and training.group.rank == 0:
            # a step has one commit of media, so those of its other evaluations are in it again
            everything = evaluations.due(step, kept=True, last=True)
            self.io.save_media(step, evaluations.measure(everything, model, step).media)
        return val
