"""Fixtures that every test may use. The environment of Ray and MLflow is set here, before anything imports them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

_HOME = tempfile.mkdtemp(prefix="scalespec-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
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


ON_THE_SHARED_RAY = {
    f"tests/orchestrator/{name}.py"
    for name in (
        "test_cli",
        "engine/test_cluster",
        "engine/test_lanes",
        "test_run",
        "spectra/test_stage",
    )
}
WITH_A_RAY_OF_THEIR_OWN = {f"tests/orchestrator/{name}.py" for name in ("test_job", "test_own_task")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first. Everything on the shared Ray instance is one queue, so its files are named above."""

    def turn(item: pytest.Item) -> int:
        file = item.nodeid.split("::")[0]
        return 0 if file in ON_THE_SHARED_RAY else 1 if file in WITH_A_RAY_OF_THEIR_OWN else 2

    items.sort(key=turn)
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) and turn(item):
            raise pytest.UsageError(f"{item.nodeid}: name its file in ON_THE_SHARED_RAY of tests/conftest.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes, one has all tests on the shared Ray instance, the others go by file.

    These tests mostly wait for processes to start, so they run well beside those that compute.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneWithRay(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if file in ON_THE_SHARED_RAY else file

    return OneWithRay(config, log)
