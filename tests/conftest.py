"""Fixtures that every test may use. The environment of Ray and MLflow is set here, before anything imports them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

_HOME = tempfile.mkdtemp(prefix="scalespec-tests-")
os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN_PATH": f"{_HOME}/auth_token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # workers of Ray import the tasks of the tests
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        ),
    }
)

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data (`data/`, `golden/`); tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SCALESPEC_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("real data not found: set SCALESPEC_SHARED to the folder that holds data/ and golden/")
    return folder


WITH_RAY = {f"tests/orchestrator/test_{name}.py" for name in ("cli", "cluster", "job", "own_task", "run", "spectra")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that use Ray first: they take longest, and in one process there can be only one of their queue."""
    items.sort(key=lambda item: item.nodeid.split("::")[0] not in WITH_RAY)
    for item in items:
        if item.get_closest_marker("ray") and item.nodeid.split("::")[0] not in WITH_RAY:
            raise pytest.UsageError(f"{item.nodeid} uses Ray: name its file in WITH_RAY of tests/conftest.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes, one has all tests that use Ray, the others go by file.

    So there is one Ray instance, and its tests, which mostly wait for processes to start, run beside those that compute.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneWithRay(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if file in WITH_RAY else file

    return OneWithRay(config, log)
