"""What every store promises, tried on the local disk; and the disk's own manners."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from scalespec.trainables.files import LocalFiles


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def test_ranges(files):
    files.write("a", bytes(range(10)))
    assert files.read("a", 3, 4) == bytes(range(3, 7))
    assert files.read("a", 8) == bytes([8, 9])
    assert files.read("a", 8, 100) == bytes([8, 9])
    assert files.read("a", 10, 1) == files.read("a", 99, 1) == files.read("a", 2, 0) == b""


def test_what_is_no_file_is_not_found(files):
    files.write("a/b", b"1")
    for path in ("absent", "a", "a/b/c"):
        with pytest.raises(FileNotFoundError):
            files.read(path)
    assert files.names("a/b") == files.names("absent") == files.walk("absent") == files.walk("a/b") == []


def test_listings_are_sorted_and_do_not_show_writes_under_way(files, tmp_path):
    for path in ("r/b/2", "r/b/1", "r/a", "r/.tmp-x", "r/b/.tmp-1/3", "other"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "r/empty").mkdir()
    assert files.walk("r") == ["a", "b/1", "b/2"]
    assert files.names("r") == ["a", "b", "empty"]


def test_one_of_many_creates(files):
    start, won = threading.Barrier(8), []

    def create(writer: int) -> None:
        start.wait()
        for turn in range(20):
            if files.create(f"claims/{turn}", b"%d" % writer):
                won.append((turn, b"%d" % writer))

    threads = [threading.Thread(target=create, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, _ in won) == list(range(20))
    assert all(files.read(f"claims/{turn}") == writer for turn, writer in won)


@pytest.mark.parametrize("error", [1, 95])
def test_a_disk_without_hard_links_creates_all_the_same(files, tmp_path, monkeypatch, error):
    def link(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", link)
    assert files.create("a/claim", b"one")
    assert not files.create("a/claim", b"two")
    assert (files.read("a/claim"), os.listdir(tmp_path / "a")) == (b"one", ["claim"])


def test_a_link_whose_answer_was_lost_is_recognised(files, monkeypatch):
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert files.create("a/claim", b"one")


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_the_umask_is_followed(files, tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write("a/written", b"")
        files.create("a/created", b"")
    finally:
        os.umask(before)
    for name in ("written", "created"):
        assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_write_that_fails_leaves_no_trace(files, tmp_path, monkeypatch, call):
    files.write("a/result.json", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        files.write("a/result.json", b"new")
    assert files.read("a/result.json") == b"old"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["result.json"]


def test_every_new_name_is_synced_in_its_folder(files, tmp_path, monkeypatch):
    """A file outlives a power cut only if each folder on the way to it does."""
    synced, fsync = [], os.fsync

    def note(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here to tell what a descriptor is")
    for write in (files.write, files.create):
        synced.clear()
        write(f"{write.__name__}/b/c.json", b"1")
        folders = [path for path in synced if os.path.isdir(path)]
        assert folders == [str(tmp_path), str(tmp_path / write.__name__), str(tmp_path / write.__name__ / "b")]
        assert any(".tmp-" in path for path in synced)
        synced.clear()
        write(f"{write.__name__}/b/d.json", b"1")
        assert [path for path in synced if os.path.isdir(path)] == [str(tmp_path / write.__name__ / "b")]


def test_a_folder_disappears_at_once(files, tmp_path, monkeypatch):
    files.write("a/state/manifest.json", b"1")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before the first file is gone
    files.delete("a/state")
    assert files.walk("") == files.walk("a") == files.names("a") == []
    files.delete("a/state")
    files.delete("absent/too")
