"""The trunk of a family: what its runs share before their cooldowns is trained once, and each run branches from it."""

from __future__ import annotations

from collections.abc import Collection

from scalespec.trainables.checkpoints import DamagedError, RunFolder
from scalespec.trainables.errors import DivergedError
from scalespec.trainables.family import RunSchedule
from scalespec.trainables.training import Training


def to_branch(
    training: Training, schedule: RunSchedule, own: RunFolder, trunk: RunFolder, trunk_kept: Collection[int]
) -> None:
    """Brings the trunk to the branch of a run, training what is missing, and copies its record into the run's folder.

    `trunk_kept`: the steps at which some run of the family wants the trunk's weights. A checkpoint of the trunk that turns
    out damaged is trained again from the state before it. Raises DivergedError, with the record copied so far.
    """
    branch, wanted = schedule.branch, schedule.kept_of_trunk
    assert branch is not None
    kept = {step for step in trunk_kept if step <= branch} | set(wanted)
    for _ in range(len(wanted) + 1):
        _extend(training, branch, own, trunk, wanted, kept)
        if not training.group.agreed(int(training.group.rank == 0 and not _adopted(own, trunk, branch, wanted))):
            return


def _extend(
    training: Training, branch: int, own: RunFolder, trunk: RunFolder, wanted: Collection[int], kept: Collection[int]
) -> None:
    """Trains the trunk from its newest state to `branch`, or from an older one where a wanted checkpoint is lacking."""
    group = training.group
    have = trunk.checkpoint_steps() if group.rank == 0 else wanted
    lacking = group.agreed(min((step for step in wanted if step not in have), default=branch + 1))
    start = training.load(trunk, min(branch, lacking))
    if start is not None:
        training.restore(start)
    elif training.step:
        training.reset()
    if (start is None or training.step == lacking) and training.step in kept:
        training.look(trunk, kept=True)
    try:
        training.advance(branch, trunk, kept)
    except DivergedError:
        if group.rank == 0:
            have = trunk.checkpoint_steps()
            own.adopt(trunk, training.step, [step for step in wanted if step in have])
        raise
    if start is None or start.step != branch:
        training.save_state(trunk, keep=True)


def _adopted(own: RunFolder, trunk: RunFolder, branch: int, wanted: Collection[int]) -> bool:
    try:
        own.adopt(trunk, branch, sorted(wanted))
    except DamagedError:
        return False
    return True
