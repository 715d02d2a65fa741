"""One driver a study.

Drivers are numbered by create-only files, `leases/000007.json`: of several that start at once one gets the next number, and who
sees a higher number than its own has lost the study. A number is over when its driver says so, or when it is dead: on the same
machine its process is looked up; a driver elsewhere lives as long as its counter in `lease.json` moves while somebody watches.
No clock is compared with another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from scalespec.orchestrator.store.folder import StudyStore
from scalespec.trainables.commits import read_json
from scalespec.trainables.files import Files

HEARTBEAT_S, WATCH_S = 10.0, 35.0
"""The holder counts on every HEARTBEAT_S; one elsewhere whose count stands still for WATCH_S is dead."""

LOOK_S = 0.5
"""Pause between two looks at the counter of a driver elsewhere."""

DEAD, HIDDEN = "dead", "hidden"
"""Instead of a start: there is no such process; there is one of which this user may know nothing."""

FOLDER, RECORD, OVER = "leases", "lease.json", "-over.json"


class LeaseError(RuntimeError):
    """Another driver holds the study."""


class Lease:
    """Held from `acquire` to `release`; `lost` is set when another driver has taken over."""

    def __init__(self, store: StudyStore, tell: Callable[[str], None] = lambda _: None) -> None:
        self.files, self.tell = store.files, tell
        self.session = uuid.uuid4().hex[:12]
        self.number, self.count = 0, 0
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def acquire(self) -> Lease:
        """Takes the lease or raises LeaseError naming its holder."""
        while True:
            newest = _newest(self.files)
            if newest and is_held(self.files, newest, self.tell):
                raise LeaseError(f"this study is being run by {_holder(self.files, newest)}; stop it or wait for it")
            self.number = newest + 1
            if self.files.create(_path(self.number), self._record()):
                break  # else another driver was faster; it is looked at in its turn
        self.files.write(RECORD, self._record())
        self._thread.start()
        return self

    def _record(self) -> bytes:
        me = {"session": self.session, "host": socket.gethostname(), "pid": os.getpid(), "number": self.number}
        facts = {**me, "machine": machine(), "started": started(os.getpid())}
        return json.dumps({**facts, "count": self.count, "heartbeat": time.time()}, indent=1).encode()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(
                OSError
            ):  # storage that is away for a while costs nothing: nobody else sees it either
                if _newest(self.files) > self.number:
                    self.lost.set()
                    return
                self.count += 1
                self.files.write(RECORD, self._record())

    def release(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        with contextlib.suppress(OSError):
            self.files.create(_path(self.number, OVER), json.dumps({"session": self.session}).encode())
            if _field(read_json(self.files, RECORD), "session") == self.session:
                self.files.delete(RECORD)


@contextlib.contextmanager
def lease(store: StudyStore, tell: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """Holds the study for the length of a `with`. `tell` hears why it takes a while."""
    held = Lease(store, tell).acquire()
    try:
        yield held
    finally:
        held.release()


def is_held(files: Files, number: int, tell: Callable[[str], None] = lambda _: None) -> bool:
    """Whether the driver of a number still drives its study. May watch it for WATCH_S."""
    if f"{number:06d}{OVER}" in files.names(FOLDER):
        return False
    found = read_json(files, _path(number))
    if _field(found, "machine") == machine() and type(_field(found, "pid")) is int:
        return started(found["pid"]) in (found.get("started"), HIDDEN)
    before = _count(files)
    tell(f"looking whether {_holder(files, number)} still runs this study: at most {WATCH_S:.0f} s")
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(LOOK_S)
        if f"{number:06d}{OVER}" in files.names(FOLDER):
            return False
        if _count(files) != before:
            return True
    return False


def _count(files: Files) -> tuple[Any, Any]:
    record = read_json(files, RECORD)
    return _field(record, "number"), _field(record, "count")


def _newest(files: Files) -> int:
    heads = (name.partition(".")[0] for name in files.names(FOLDER) if name.endswith(".json"))
    return max((int(head) for head in heads if head.isascii() and head.isdigit() and len(head) < 19), default=0)


def _path(number: int, ending: str = ".json") -> str:
    return f"{FOLDER}/{number:06d}{ending}"


def _holder(files: Files, number: int) -> str:
    found = read_json(files, _path(number))
    return f"process {_field(found, 'pid', '?')} on {_field(found, 'host', 'an unknown host')}"


def _field(record: Any, name: str, default: Any = None) -> Any:
    return record.get(name, default) if isinstance(record, dict) else default


def machine() -> str:
    """What two processes share that see each other's numbers: host, boot and space of process numbers."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {space}".strip()


def started(pid: int) -> str:
    """When a living process began, in a measure that no change of the clock moves."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return DEAD
        stat = Path(f"/proc/{pid}/stat")
        # clock ticks since boot, the 22nd field; the second one is a name that may hold spaces
        return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else f"{process.create_time():.3f}"
    except psutil.AccessDenied:
        return HIDDEN
    except (psutil.NoSuchProcess, OSError, ValueError, OverflowError, IndexError):
        return DEAD
