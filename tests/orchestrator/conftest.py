"""What the tests of the orchestrator share: one Ray instance, since starting one takes seconds, and the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from folders import contents

from scalespec.orchestrator import cli
from scalespec.orchestrator.engine import cluster


@pytest.fixture(scope="session")
def ray_cluster():
    with cluster.connected() as machine:
        yield machine


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def scalespec(capsys, monkeypatch, tmp_path):
    """The command line, typed in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def run(*arguments: str | Path) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        code = caught.value.code
        return Said(0 if code is None else int(code), *capsys.readouterr())

    return run


@pytest.fixture
def refused(scalespec, tmp_path):
    """Asserts that a command is bad input: one line on standard error, exit code 2, the disk as before.

    Before that line a task of the user's own may have been named, since its code ran.
    """

    def check(*arguments: str | Path) -> str:
        before = contents(tmp_path)
        said = scalespec(*arguments)
        assert said.code == 2, said
        *named, line = said.err.splitlines()
        assert line.startswith("scalespec: ")
        assert len(named) <= 1
        assert all(word.startswith("task ") for word in named)
        assert said.out == ""
        assert contents(tmp_path) == before
        return line

    return check
