"""What is printed to be pasted must run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scalespec.orchestrator.terminal.command import command, program

BIN = Path(sys.executable).parent


def test_by_name_where_the_shell_finds_it(monkeypatch):
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert program() == "scalespec"


@pytest.mark.parametrize("near", [True, False])
def test_by_a_path_that_runs_where_it_is_not_on_the_path(monkeypatch, tmp_path, near):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(BIN.parent.parent if near else tmp_path)
    printed = command("status", "a folder")
    assert printed.endswith(" status 'a folder'")
    done = subprocess.run(f"{program()} --help", shell=True, capture_output=True, text=True, check=True)
    assert "spectra" in done.stdout
    if near:
        assert not os.path.isabs(shlex.split(printed)[0])


def test_another_program_of_that_name_is_not_meant(monkeypatch, tmp_path):
    other = tmp_path / "scalespec"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() != "scalespec"


def test_without_a_script_python_runs_the_package(monkeypatch, tmp_path):
    python = tmp_path / "my python"
    python.write_text("")
    monkeypatch.setattr(sys, "executable", str(python))
    assert program() == f"{shlex.quote(str(python))} -m scalespec"
