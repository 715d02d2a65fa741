"""Wheel and source archive: what is in them, and that the wheel works alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("analysis", "orchestrator", "trainables")
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "results", "_build", "__pycache__", "*.egg-info", "*.db")
BUILD = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with both, built from a copy of the sources."""
    copy = tmp_path_factory.mktemp("package") / "sources"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


def sources() -> set[str]:
    """What is installed, as paths in a wheel: code, templates, marks of types."""
    found = {f"scalespec/{path.name}" for path in (ROOT / "scalespec").iterdir() if path.suffix in (".py", ".typed")}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                found.add(f"scalespec/{path.relative_to(ROOT)}")
    return found


def test_the_wheel_is_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert {"scalespec/py.typed", "scalespec/orchestrator/report/templates/report.html"} <= names


def test_the_source_archive_can_be_tested(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py")}
    assert tests <= names
    assert {"Makefile", "constraints.txt", "studies/quickstart.yaml", "docs/contract.md", "LICENSE"} <= names
    assert {f"scalespec/{name}" for name in names if name.partition("/")[0] in FOLDERS} >= sources() - {
        name for name in sources() if name.count("/") == 1
    }
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_alone_fits_from_any_folder(wheel, tmp_path):
    installed, here = tmp_path / "installed", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 5e9, 6), np.geomspace(1e9, 2e11, 6)))
    table = pd.DataFrame({"n": n, "d": d, "loss": 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28})
    table.to_csv(here / "runs.csv", index=False)

    def python(*arguments: str) -> str:
        command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    version = wheel.name.split("-")[1]
    assert python("-c", "import scalespec; print(scalespec.__file__)").startswith(str(installed))
    assert python("-m", "scalespec", "--version") == f"scalespec {version}\n"
    assert "alpha" in python(
        "-m", "scalespec", "fit", "runs.csv", "--n", "n", "--d", "d", "--loss", "loss", "--plot", "law.svg"
    )
    assert (here / "law.svg").exists()
