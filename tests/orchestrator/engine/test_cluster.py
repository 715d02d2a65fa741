"""Connecting to Ray: what is left in the environment, what is reached, and what a failure says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scalespec.orchestrator.engine import cluster
from scalespec.orchestrator.engine.cluster import connected, cpus_here, machine, this_machine, worker_environment

TESTS = Path(__file__).parents[2]


def test_this_machine_has_the_cpus_of_this_process():
    assert this_machine().cpus == cpus_here() == len(os.sched_getaffinity(0))


def test_workers_elsewhere_get_the_settings_of_this_project(monkeypatch):
    for key in cluster.ENVIRONMENT:
        monkeypatch.delenv(key, raising=False)
    assert worker_environment() == {}
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    both = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    assert worker_environment() == both
    for job in ({}, {"runtime_env": None}, {"runtime_env": {"working_dir": "gcs://x"}}):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
        assert worker_environment() == both
    # given twice, Ray would refuse it
    job = {"runtime_env": {"env_vars": {"RAY_AIR_NEW_OUTPUT": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert worker_environment() == {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.ray
def test_an_instance_that_is_connected_is_used_and_left(ray_cluster):
    import ray

    session = ray.get_runtime_context().get_session_name()
    with connected() as found:
        assert found == ray_cluster == machine()
        assert ray.get_runtime_context().get_session_name() == session
    assert ray.is_initialized()


@pytest.mark.ray
def test_functions_run_where_there_is_a_gpu_only(ray_cluster):
    import ray

    assert ray_cluster.gpus == int(ray.cluster_resources().get("GPU", 0))


def in_a_process(code: str, folder: os.PathLike[str], **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Runs code as a user would, without the settings of these tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    known = [path for path in kept.pop("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != TESTS]
    kept |= {"PYTHONPATH": os.pathsep.join(known)} if known else {}
    kept |= {key: value for key, value in environment.items() if value is not None}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=200, check=False)


PRIVATE = """
import os, json, psutil
from scalespec.orchestrator.engine.cluster import connected
with connected(None, ["own"]) as found:
    import ray
    @ray.remote
    def look():
        import own_module, os, importlib.util
        assert importlib.util.find_spec("module_here") is None, "what lies where the command is given is nobody's"
        return own_module.ANSWER, os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    address = ray.get_runtime_context().gcs_address
    looked, token = ray.get(look.remote()), os.environ["RAY_AUTH_TOKEN"]
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    hosts = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in ours}
    print(json.dumps([found.cpus, address, looked, os.environ["RAY_AUTH_MODE"], len(token), sorted(hosts)]))
print(ray.is_initialized())
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_private_instance_is_on_loopback_with_a_token_that_is_on_no_disk(tmp_path):
    """Its workers import what lies in the folders named, and not what lies where the command was given."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own_module.py").write_text("ANSWER = 42")
    (tmp_path / "module_here.py").write_text("")
    home = tmp_path / "home"
    home.mkdir()
    done = in_a_process(PRIVATE.replace('"own"', repr(str(tmp_path / "own"))), tmp_path, HOME=str(home))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    cpus, address, (answer, interval), mode, token, hosts = json.loads(first)
    assert (cpus, answer, interval, mode, token) == (cpus_here(), 42, "0.2", "token", 64)
    assert address.startswith("127.0.0.1:")
    assert {host.removeprefix("::ffff:") for host in hosts} == {"127.0.0.1"}
    assert second == "False"
    assert not (home / ".ray/auth_token").exists()


def test_an_address_where_nothing_listens_is_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
from scalespec.orchestrator.engine.cluster import connected
from scalespec.orchestrator.errors import InputError
try:
    with connected("127.0.0.1:{port}"):
        pass
except InputError as error:
    print(error)
"""
    done = in_a_process(code, tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot start or reach Ray at 127.0.0.1:{port}: ")
