"""Small studies for tests."""

from __future__ import annotations

from typing import Any

import yaml

from scalespec.orchestrator.study.file import Study, parse_study
from scalespec.orchestrator.study.grid import Grid, expand

TOY: dict[str, Any] = {
    "name": "toy",
    "task": {"name": "toy_task:Toy"},
    "data": {"source": "teacher", "limit": 2048},
    "grid": {"width": [8, 16], "data_fraction": ["1", "1/2", "1/4"], "seed": [0]},
    "optim": {"lr": 0.01, "batch_size": 16, "reference": {"width": 8, "batch_size": 16}},
    "schedule": {"name": "wsd", "warmup": 128, "cooldown": 0.25},
    "train": {"checkpoints": 5},
}


def toy_yaml(**changes: Any) -> str:
    """The toy study as YAML; `grid={...}` and other sections are merged key by key."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in TOY.items()}
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    if "design" in changes:
        del merged["grid"]
    return yaml.safe_dump(merged)


def toy(**changes: Any) -> Study:
    return parse_study(toy_yaml(**changes), "toy.yaml")


def toy_grid(**changes: Any) -> Grid:
    return expand(toy(**changes))
