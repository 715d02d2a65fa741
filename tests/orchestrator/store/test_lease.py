"""Who drives a study: dead and living drivers, here and elsewhere, and records of any shape."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from faulty import DeadError, Faults, FaultyFiles, MemoryFiles

from scalespec.orchestrator.store import lease as module
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.lease import Lease, LeaseError, is_held, lease, machine, started
from scalespec.trainables.files import LocalFiles


@pytest.fixture
def store(tmp_path) -> StudyStore:
    return StudyStore(str(tmp_path))


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(module, "WATCH_S", 0.6)
    monkeypatch.setattr(module, "LOOK_S", 0.02)


def test_a_second_driver_is_refused_with_the_holder_named(store):
    with lease(store), pytest.raises(LeaseError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        Lease(store).acquire()
    assert store.read_json("lease.json") is None
    with lease(store) as held:
        record = store.read_json("lease.json")
        assert {record["session"], record["number"]} == {held.session, 2}
        assert (record["host"], record["pid"]) == (socket.gethostname(), os.getpid())
        assert abs(record["heartbeat"] - time.time()) < 60


HEAD = """
import os, sys, time
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.lease import Lease, LeaseError
store = StudyStore(sys.argv[1])
"""


def driver(root: str, code: str) -> subprocess.Popen[str]:
    """A driver in a process of its own."""
    command = [sys.executable, "-c", HEAD + code, root]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_lease_of_a_dead_process_is_taken_over_at_once(store):
    with driver(store.root, "Lease(store).acquire(); os._exit(9)") as process:
        assert process.wait(60) == 9
    assert store.read_json("lease.json")["pid"] == process.pid
    with lease(store, lambda words: pytest.fail(words)) as held:
        assert store.read_json("lease.json")["session"] == held.session


def elsewhere(store: StudyStore, number: int = 1, **facts: object) -> dict:
    record = {"session": "x", "host": "elsewhere", "pid": os.getpid(), "machine": "elsewhere", "started": "0"}
    record |= {"number": number, "count": 3, "heartbeat": 0.0, **facts}
    store.write_json(f"leases/{number:06d}.json", record)
    store.write_json("lease.json", record)
    return record


@pytest.mark.parametrize("clock", [-1e6, 0.0, 1e6])
def test_a_driver_elsewhere_lives_as_long_as_it_counts_whatever_its_clock(store, hurried, clock):
    record = elsewhere(store, heartbeat=time.time() + clock)
    stop = threading.Event()

    def count() -> None:
        while not stop.wait(0.05):
            record["count"] += 1
            store.write_json("lease.json", record)

    thread = threading.Thread(target=count)
    thread.start()
    said: list[str] = []
    try:
        with pytest.raises(LeaseError, match="on elsewhere"):
            Lease(store, said.append).acquire()
    finally:
        stop.set()
        thread.join()
    with lease(store, said.append):  # now its count stands still
        assert store.read_json("lease.json")["number"] == 2
    assert len(said) == 2
    assert "process" in said[0]


def test_a_driver_elsewhere_that_ends_while_it_is_watched_is_not_waited_for(store, hurried, monkeypatch):
    monkeypatch.setattr(module, "WATCH_S", 60.0)
    elsewhere(store)
    timer = threading.Timer(0.2, lambda: store.files.create("leases/000001-over.json", b"{}"))
    timer.start()
    began = time.monotonic()
    with lease(store):
        assert time.monotonic() - began < 30


def test_a_process_that_bears_the_number_of_a_dead_driver_is_not_it(store):
    elsewhere(store, machine=machine(), pid=os.getpid(), started="1")
    with lease(store, lambda words: pytest.fail(words)):
        pass


def test_a_step_of_the_clock_does_not_kill_a_driver(store, monkeypatch):
    with lease(store):
        boot = psutil.boot_time()
        monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3.0)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
        if not os.path.isdir("/proc/self"):
            pytest.skip("the start of a process is a time of day here")
        assert is_held(store.files, 1)


SHAPES = [b"", b"{", b"[]", b"3", b'"x"', b"{}", b'{"pid": "x"}', b'{"pid": 1e400}', b"\xff", b"[" * 10_000]


@pytest.mark.parametrize("shape", [*SHAPES, "folder"])
@pytest.mark.parametrize("path", ["lease.json", "leases/000001.json"])
def test_a_record_of_any_shape_neither_raises_nor_locks_the_study(store, hurried, path, shape):
    elsewhere(store)
    store.files.delete(path)
    store.files.write(f"{path}/inner" if shape == "folder" else path, b"" if shape == "folder" else shape)
    if (shape, path) == ("folder", "lease.json"):
        with pytest.raises(OSError, match=r"lease\.json"):
            Lease(store).acquire()
        return
    with lease(store):
        assert store.read_json("lease.json")["number"] == 2


@pytest.mark.parametrize("record", [b'{"machine": %b}', b'{"machine": %b, "pid": -5}', b'{"machine": %b, "pid": 1e30}'])
def test_a_record_of_this_machine_without_a_process_is_nobodys(store, hurried, record):
    store.files.write("leases/000001.json", record % json.dumps(machine()).encode())
    with lease(store):
        pass


def test_foreign_names_among_the_leases_are_passed_over(store):
    for name in ("x.json", "-1.json", "٣.json", "000009", "000009.json.bak", "99999999999999999999999.json"):
        store.files.write(f"leases/{name}", b"{}")
    with lease(store) as held:
        assert held.number == 1


HOLD = """
print("ready", flush=True)
input()
try:
    held = Lease(store).acquire()
except LeaseError:
    print(0, flush=True)
else:
    print(held.number, flush=True)
    input()
    held.release()
"""


def test_of_several_drivers_at_once_one_holds_the_study(store):
    drivers = [driver(store.root, HOLD) for _ in range(3)]
    for process in drivers:
        assert process.stdout.readline() == "ready\n"
    for process in drivers:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.stdout.readline() for process in drivers) == ["0\n", "0\n", "1\n"]
    for process in drivers:
        process.communicate("\n", timeout=60)


def test_a_driver_that_was_taken_for_dead_learns_that_it_has_lost(store, hurried):
    with lease(store) as first:
        store.files.create("leases/000002.json", b"{}")
        assert first.lost.wait(20)
        store.write_json("lease.json", {"session": "second"})
    assert store.read_json("lease.json") == {"session": "second"}  # the end of the first is not the end of the second


def test_storage_that_is_away_for_a_while_loses_no_lease(store, hurried, monkeypatch):
    with lease(store) as held:
        names, away = LocalFiles.names, threading.Event()

        def flaky(self, folder):
            away.set()
            raise OSError("away")

        monkeypatch.setattr(LocalFiles, "names", flaky)
        assert away.wait(20)
        monkeypatch.setattr(LocalFiles, "names", names)
        count = held.count
        deadline = time.monotonic() + 20
        while held.count <= count + 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not held.lost.is_set()


@pytest.mark.parametrize("kind", Faults.KINDS)
def test_a_driver_that_dies_or_fails_at_any_call_locks_nobody_out(store, hurried, monkeypatch, kind):
    """And while it holds the study nobody else does."""
    files, here, at = MemoryFiles(), machine(), 0
    while True:
        at += 1
        faults = Faults(at, kind)
        first, second = Lease(store), Lease(store)
        first.files, second.files = FaultyFiles(files, faults), files
        with contextlib.suppress(DeadError, OSError):
            first.acquire()
            with pytest.raises(LeaseError):
                second.acquire()
            first.release()
        first._stop.set()
        if first._thread.ident is not None:
            first._thread.join()
        monkeypatch.setattr(module, "machine", lambda: "elsewhere")  # from here its process cannot be looked up
        second.acquire().release()
        # the number is the first one's own only where it did not get it
        assert json.loads(files.read(f"leases/{second.number:06d}.json"))["session"] == second.session
        assert second.number >= first.number
        assert files.names("leases")[-1] == f"{second.number:06d}.json"
        assert "lease.json" not in files.names("")
        monkeypatch.setattr(module, "machine", lambda: here)
        if faults.count < at:
            break
    assert at >= 8


def test_no_process_no_start():
    assert started(os.getpid()) == started(os.getpid()) != "dead"
    assert started(2**31 - 1) == started(-1) == "dead"
