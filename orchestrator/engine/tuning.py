"""How Tune is made to run lanes: a searcher that hands out what the driver wants, and a callback that counts deaths.

Both live in the driver's process, in Tune's thread. Tune pickles them into its experiment state, which is never read back, so
what they share with the driver is left out there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from scalespec.orchestrator.engine.wishes import HEAD, Wishes, is_local, stops, words_of


def resources(config: Mapping[str, Any]) -> PlacementGroupFactory:
    """A worker's CPUs where the trial is the worker; else a trace of the head node."""
    return PlacementGroupFactory([{"CPU": config["cpus"]} if is_local(config) else dict(HEAD)])


class LaneSearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """Suggests the configuration of each lane that is wanted, and nothing between."""

    def __init__(self, wishes: Wishes) -> None:
        super().__init__(metric=None, mode=None)
        self.wishes = wishes

    def suggest(self, trial_id: str) -> Any:
        with self.wishes.changed:
            if self.wishes.wanted:
                return self.wishes.wanted.popleft()
            return None if self.wishes.left() else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learnt from a lane."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to keep: an experiment is never resumed."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {"_metric": None, "_mode": None}


class LaneCallback(TrialProgressCallback):  # type: ignore[misc]
    """Counts the deaths of a lane between two claims of a run; at the third it is not started again.

    Unless it is given one of this class, Tune adds one that prints a line for every lane that ends, `verbose=0` or not.
    """

    def __init__(self, wishes: Wishes) -> None:
        self.wishes = wishes

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """A lane has no results that anyone would read."""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lane = trial.config["lane"]
        with self.wishes.changed:
            self.wishes.idle_deaths[lane] += 1
            # the next failure is final where this was the last but one
            last = stops(self.wishes.idle_deaths[lane] + 1)
        trial.max_failures = trial.num_failures if last else -1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, words_of(_noted(trial.error_file)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, "")

    def _ended(self, trial: Any, why: str) -> None:
        lane = trial.config["lane"]
        with self.wishes.changed:
            self.wishes.ended.append((lane, why))
            self.wishes.changed.notify_all()


def _noted(path: str | None) -> str:
    """What Tune has noted of the last failure of a trial, in a file on the driver's own disk."""
    text = Path(path).read_text() if path and Path(path).is_file() else ""
    return text.rpartition("Failure # ")[2].partition("\n")[2]
