"""A study as a Ray job, submitted to a head of its own with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from scalespec import analysis

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = {
    "grid.width": "[16]",
    "grid.seed": "[0]",
    "grid.data_fraction": "[1, 1/2]",
    "data.limit": "1024",
    "spectra.every": "last",
    "report": "false",
}


@dataclass(frozen=True)
class Head:
    """A Ray head of these tests alone."""

    url: str
    gcs: str
    token: str
    environment: dict[str, str]

    def submit(self, *command: str, token: str | None = None, **options: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` with the repository as working directory, to its end."""
        environment = dict(self.environment)
        environment.pop("RAY_AUTH_TOKEN")
        if token is not None:
            environment["RAY_AUTH_TOKEN"] = token
        given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        line = [
            str(BIN / "ray"),
            "job",
            "submit",
            "--address",
            self.url,
            "--working-dir",
            str(REPOSITORY),
            *given,
            "--",
        ]
        return subprocess.run(
            [*line, *command], env=environment, capture_output=True, text=True, timeout=500, check=False
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 200
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` on loopback. It ends with its own processes only: `ray stop` would end every Ray of the machine."""
    folder = Path(tempfile.mkdtemp(prefix="ss-", dir="/tmp"))  # short, since the paths of Unix sockets are
    token = secrets.token_hex(32)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH", "SCALESPEC"))}
    environment = {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    # so that even the ports without a loopback option are not on the network
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    environment |= {"HOME": str(folder), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    port, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "metrics-export-port": metrics,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "temp-dir": folder / "ray",
        "num-cpus": 2,
        "object-store-memory": 256 << 20,
        "include-dashboard": "true",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    ours: set[psutil.Process] = set()
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(url, token, process, log)
        yield Head(url, f"127.0.0.1:{port}", token, environment)
    finally:
        if process.poll() is None:
            ours = set(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in ours:
            if child.is_running():
                child.kill()
        psutil.wait_procs(ours, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def study(*more: str) -> list[str]:
    changes = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    return ["python", "-m", "orchestrator", "run", "studies/quickstart.yaml", *changes, *more]


def test_a_job_runs_a_study_to_its_end(head, tmp_path):
    # a setting of the study's own environment, given for the job too, is no conflict
    settings = json.dumps({"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}})
    done = head.submit(*study("--storage", str(tmp_path)), token=head.token, runtime_env_json=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 done" in done.stdout
    root = tmp_path / "quickstart"
    found = analysis.load(root)
    assert found.runs["status"].tolist() == ["done", "done"]
    assert (found.runs["task"] == "gpt").all()
    assert set(found.spectra["run_key"]) == set(found.runs["run_key"])
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
    assert not (root / "lease.json").exists()
    # nothing of it was written where the job's copy of the code lies
    assert not list(Path(head.environment["HOME"], "ray").rglob("mlflow.db"))
    # and what was uploaded is code
    uploaded = {path.name for path in Path(head.environment["HOME"], "ray").rglob("_ray_pkg_*/*")}
    assert {"orchestrator", "trainables", "analysis", "studies"} <= uploaded
    assert not uploaded & {".git", ".venv", "results", "docs"}


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_without_the_token_nothing_is_accepted(head, tmp_path, token):
    done = head.submit(*study("--storage", str(tmp_path)), token=token)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_driver_elsewhere_without_the_token_is_refused_in_one_line(head, tmp_path, token):
    environment = {key: value for key, value in head.environment.items() if key != "RAY_AUTH_TOKEN"}
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    command = [sys.executable, "-m", "scalespec", *study("--storage", str(tmp_path), "--address", head.gcs)[3:]]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"cannot start or reach Ray at {head.gcs}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_relative_storage_ends_the_job_with_the_remedy_in_its_log(head):
    done = head.submit(*study(), token=head.token)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "a Ray job's working directory is deleted with the job" in said
    assert "add --storage with an absolute path or URI that every node sees" in said
    assert "exit code 2" in said
    assert "Traceback" not in said
    assert not list(Path(head.environment["HOME"], "ray").rglob("study.yaml"))
