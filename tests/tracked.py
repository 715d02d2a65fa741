"""Studies in MLflow stores of their own, and what is found there."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient
from trained import Trained

from scalespec.analysis import tables
from scalespec.orchestrator.tracking.mlflow import PARENT, Tracker, target_of
from scalespec.orchestrator.tracking.recorder import Recorder

SMALL: dict[str, Any] = {
    "grid": {"width": [8], "data_fraction": ["1", "1/2"]},
    "data": {"limit": 256},
    "train": {"checkpoints": 3},
}


def tracker_of(study: Trained) -> Tracker:
    target = target_of(study.store, None)
    assert target is not None
    return Tracker(study.store, target, study.study.name)


def client_of(study: Trained) -> MlflowClient:
    return MlflowClient(f"sqlite:///{study.store.root}/mlflow.db")


def runs_of(client: MlflowClient, name: str = "toy") -> tuple[list[Any], list[Any]]:
    """Parents and children of an experiment."""
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    return [r for r in found if PARENT not in r.data.tags], [r for r in found if PARENT in r.data.tags]


def points_of(client: MlflowClient, run: Any) -> list[tuple[str, int, float]]:
    """Every point of a run; a metric has one history a key."""
    history = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
    return [(point.key, point.step, point.value) for points in history for point in points]


def summary_of(study: Trained, value: float = 2.5) -> list[dict[str, Any]]:
    """A full line of `spectra_summary` for every checkpoint."""
    names = [name for name in tables.SPECTRA_SUMMARY.names if name not in ("run_key", "step", "profile", "reasons")]
    return [
        {"run_key": spec.run_key, "step": step, "profile": "ww-0.7.7", "reasons": None, **dict.fromkeys(names, value)}
        for spec in study.specs
        for step in study.store.run(spec.run_key).checkpoint_steps()
    ]


def law(identity: str = "chinchilla", **params: float | None) -> dict[str, Any]:
    return {
        "id": identity,
        "params": {name: {"value": value, "lo": None, "hi": None} for name, value in params.items()},
    }


def complete(study: Trained, laws: list[dict[str, Any]], status: str = "FINISHED") -> Recorder:
    recorder = Recorder(tracker_of(study), study.specs)
    assert recorder.complete(summary_of(study), laws, status=status), recorder.problem
    return recorder
