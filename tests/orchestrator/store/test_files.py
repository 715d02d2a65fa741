"""Paths and URIs of storage, and which storage is refused for writing."""

from __future__ import annotations

import os

import pyarrow.fs as pafs
import pytest

from scalespec.orchestrator.store.files import (
    ArrowFiles,
    StorageError,
    below,
    check_writable,
    open_files,
    study_root,
)
from scalespec.trainables.files import LocalFiles


def test_a_relative_storage_inside_a_job_is_refused(monkeypatch):
    assert study_root("./results", "s") == os.path.join(os.getcwd(), "results", "s")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(StorageError, match="deleted with the job; add --storage with an absolute path"):
        study_root("./results", "s")
    assert study_root("/data/results", "s") == "/data/results/s"
    assert study_root("s3://bucket/x/", "s") == "s3://bucket/x/s"


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        ("s3://b", "s3://b/s"),
        ("s3://b/x?region=eu-1&endpoint_override=h:1", "s3://b/x/s?region=eu-1&endpoint_override=h:1"),
        ("s3://b/x/?scheme=http", "s3://b/x/s?scheme=http"),
        ("file:///data/x", "file:///data/x/s"),
        ("/data/x", "/data/x/s"),
    ],
)
def test_a_name_joins_the_path_and_the_query_stays_a_query(uri, joined):
    assert below(uri, "s") == study_root(uri, "s") == joined


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:hush@bucket/x",
        "gs://KEY@bucket/x",
        "s3://bucket/x?secret_key=hush",
        "s3://bucket/x?endpoint_override=http://KEY:hush@host:1",
        "s3://bucket/x?endpoint_override=http%3A%2F%2FKEY%3Ahush%40host",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    for use in (lambda: study_root(uri, "s"), lambda: open_files(uri)):
        with pytest.raises(StorageError, match="credentials") as caught:
            use()
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unknown_uris_and_unwritable_folders_are_named(tmp_path):
    with pytest.raises(StorageError, match="nosuch://x"):
        open_files("nosuch://x/y")
    with pytest.raises(StorageError, match="names no bucket"):
        open_files("s3:///x")
    with pytest.raises(StorageError, match="colour is not known"):
        open_files("s3://b/x?colour=red")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot write there"):
        check_writable(str(blocked / "below"))
    check_writable(str(tmp_path / "fine"))
    assert os.listdir(tmp_path / "fine") == []


def test_a_file_uri_is_the_disk(tmp_path):
    files = open_files(f"file://{tmp_path}/with%20space")
    assert isinstance(files, LocalFiles)
    assert files.root == tmp_path / "with space"


@pytest.mark.parametrize("forgets", ["always", "in a race"])
def test_a_store_that_ignores_the_condition_is_refused(tmp_path, monkeypatch, forgets):
    create = LocalFiles.create

    def careless(self, path, data):
        if forgets == "always" or "race" in path:
            self.write(path, data)
            return True
        return create(self, path, data)

    monkeypatch.setattr(LocalFiles, "create", careless)
    with pytest.raises(StorageError, match=r"ignores conditional writes.*choose one that honours them"):
        check_writable(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_what_pyarrow_alone_can_reach_is_for_reading(tmp_path, monkeypatch):
    LocalFiles(tmp_path).write("a/b/c.bin", bytes(range(10)))
    LocalFiles(tmp_path).write("a/d", b"")
    fs = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    files = ArrowFiles(fs, "a", "storage gs://a: can be read only")
    assert (files.read("b/c.bin"), files.read("b/c.bin", 3, 2)) == (bytes(range(10)), bytes([3, 4]))
    assert files.read("b/c.bin", 20, 2) == b""
    assert (files.names(""), files.walk(""), files.names("x")) == (["b", "d"], ["b/c.bin", "d"], [])
    with pytest.raises(FileNotFoundError):
        files.read("absent")
    for change in (lambda: files.write("x", b""), lambda: files.create("x", b""), lambda: files.delete("d")):
        with pytest.raises(StorageError, match="can be read only"):
            change()
    monkeypatch.setattr("scalespec.orchestrator.store.files.open_files", lambda root: files)
    with pytest.raises(StorageError, match="can be read only"):
        check_writable("gs://a")


def test_without_the_client_s3_can_be_read_and_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    files = open_files("s3://bucket/x?region=us-east-1&endpoint_override=none")
    assert isinstance(files, ArrowFiles)
    with pytest.raises(StorageError, match=r"pip install 'scalespec\[s3\]'"):
        files.write("x", b"")
