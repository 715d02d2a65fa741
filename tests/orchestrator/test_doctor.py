"""Each check of the doctor, passed and failed, with its remedy."""

from __future__ import annotations

import http.server
import importlib.metadata
import os
import sys
import threading
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
import torch
from folders import contents

from scalespec.orchestrator import doctor
from scalespec.orchestrator.doctor import Finding, examine, requirements
from studies import toy_yaml


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a study file in an empty folder, which is the working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def make(**changes) -> str:
        path = tmp_path / "toy.yaml"
        path.write_text(toy_yaml(**changes))
        return str(path)

    return make


def named(found: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in found if finding.name == name]
    return finding


def test_this_environment_fits():
    for finding in examine():
        if finding.name.partition("[")[0].partition(">")[0] in doctor.PACKAGES or finding.name == "python":
            assert finding.ok, finding
    assert f"{len(os.sched_getaffinity(0))} CPUs" in named(examine(), "processors").detail


def test_every_failure_has_a_remedy(write, monkeypatch):
    monkeypatch.setattr(doctor, "ENOUGH_MEMORY", 1 << 60)
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 1 << 60)
    found = examine(write())
    bad = [finding for finding in found if not finding.ok]
    assert {"memory", "disk"} <= {finding.name for finding in bad}
    assert all(finding.remedy for finding in bad)


def test_the_packages_are_those_that_the_project_declares():
    names = {text.split(">")[0].split("=")[0].split("<")[0] for text, _, _ in requirements()}
    assert names == set(doctor.PACKAGES)


@pytest.mark.parametrize(("version", "fits"), [("2.60.1", True), ("2.59.9", False), ("2.61.0", False), (None, False)])
def test_versions_are_compared_with_what_is_declared(monkeypatch, version, fits):
    real = importlib.metadata.version

    def installed(name: str) -> str:
        if name != "ray":
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["ray[default,tune]<2.61,>=2.60", "rich>=13"])
    assert requirements() == [("ray<2.61,>=2.60", version, fits)]
    finding = next(finding for finding in examine() if finding.name.startswith("ray"))
    assert finding.ok is fits
    assert finding.remedy == "pip install 'ray<2.61,>=2.60'"
    assert finding.detail == (version or "not installed")


@pytest.mark.parametrize(("version", "fits"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)])
def test_the_versions_of_python(monkeypatch, version, fits):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    assert named(examine(), "python").ok is fits


def test_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    finding = named(examine(), "memory")
    assert (finding.ok, finding.detail) == (False, "1.0 GiB free")


def test_a_driver_without_a_gpu_in_torch_is_said(monkeypatch):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/proc/driver/nvidia/version" or exists(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA" in named(examine(), "gpu").remedy
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    assert "1 GPUs Some GPU" in named(examine(), "processors").detail
    assert all(finding.name != "gpu" for finding in examine())


def test_little_shared_memory_is_said(monkeypatch):
    usage = namedtuple("usage", "total used free")(1, 1, 64 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
    finding = named(examine(), "shared memory")
    assert not finding.ok
    assert "--shm-size" in finding.remedy


def test_a_good_study_passes_and_nothing_is_left(write, tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    gpt = {"name": "gpt", "context": 16, "vocab": 256}
    data = {"path": str(tmp_path / "text.txt"), "limit": None}
    path = write(storage=str(tmp_path / "a/b/c"), task=gpt, data=data)
    before = contents(tmp_path)
    found = examine(path)
    assert named(found, "study").detail == "6 runs, data of 1 kinds read"
    assert named(found, "storage").ok
    assert named(found, "tracking").detail == f"sqlite:///{tmp_path}/a/b/c/toy/mlflow.db"
    assert contents(tmp_path) == before


def test_a_task_of_the_users_own_is_named_and_not_imported(write, monkeypatch):
    monkeypatch.delitem(sys.modules, "toy_task", raising=False)
    detail = named(examine(write()), "study").detail
    assert detail.startswith("task toy_task:Toy: ")
    assert "scalespec plan" in detail
    assert "toy_task" not in sys.modules
    absent = named(examine(write(task={"name": "absent_task:Toy"})), "study")
    assert not absent.ok
    assert "put absent_task.py there" in absent.detail


def test_folders_that_are_there_stay(write, tmp_path):
    (tmp_path / "results/toy").mkdir(parents=True)
    before = contents(tmp_path)
    path = write(storage=str(tmp_path / "results"))
    assert named(examine(path), "storage").ok
    assert contents(tmp_path).keys() == before.keys() | {"toy.yaml"}


@pytest.mark.parametrize(
    ("changes", "words"), [({"optim": {"lr": 0}}, "optim.lr"), ({"schedule": {"cooldown": 2}}, "schedule.cooldown")]
)
def test_a_bad_study_is_named_and_ends_the_examination(write, changes, words):
    found = examine(write(**changes))
    assert not named(found, "study").ok
    assert words in named(found, "study").detail
    assert found[-1].name == "study"


def test_storage_that_cannot_be_used_is_named(write, tmp_path):
    (tmp_path / "file").write_text("")
    for storage in (str(tmp_path / "file"), "nosuch://there"):
        finding = named(examine(write(storage=storage)), "storage")
        assert not finding.ok
        assert storage in finding.detail
        assert finding.remedy
    assert (tmp_path / "file").read_text() == ""


@pytest.fixture
def server():
    """Answers /health with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", Handler
        running.shutdown()


def test_a_tracking_server_that_answers(write, server):
    uri, handler = server
    for given in (uri, f"{uri}/"):
        assert named(examine(write(tracking={"uri": given})), "tracking").ok
    handler.status = 503
    finding = named(examine(write(tracking={"uri": uri})), "tracking")
    assert not finding.ok
    assert "503" in finding.detail


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "http://", "https://nosuch.invalid", "http://[bad"])
def test_a_tracking_server_that_does_not(write, uri):
    finding = named(examine(write(tracking={"uri": uri})), "tracking")
    assert not finding.ok
    assert uri in finding.detail
    assert "the study runs without it" in finding.remedy


def test_a_network_disk_has_no_live_tracking(write, monkeypatch):
    monkeypatch.setattr("scalespec.orchestrator.tracking.mlflow.is_local_disk", lambda path: False)
    finding = named(examine(write()), "tracking")
    assert finding.ok
    assert "scalespec sync" in finding.detail
