"""A finished study, and copies of it with an empty MLflow store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked import SMALL
from trained import Trained, trained

from scalespec.orchestrator.store.folder import StudyStore


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A migrated store: the migrations take seconds, a copy takes none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Trained:
    """Two finished runs of one family; not to be changed."""
    return trained(tmp_path_factory.mktemp("tracking") / "toy", **SMALL)


@pytest.fixture
def study(done, tmp_path, empty_database) -> Trained:
    """A copy with an empty MLflow store of its own."""
    shutil.copytree(done.store.root, tmp_path / "toy")
    shutil.copy(empty_database, tmp_path / "toy/mlflow.db")
    return Trained(done.study, done.grid, StudyStore(str(tmp_path / "toy")))
