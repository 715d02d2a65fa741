"""The task of docs/own-task.md, as a reader would try it: copied into a folder of one's own, planned and run from there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scalespec import analysis

DOCS = Path(__file__).parents[2] / "docs" / "own-task.md"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path):
    for name, text in re.findall(r"```\w+\n# (rings\.\w+)\n(.*?)```", DOCS.read_text(), re.DOTALL):
        (tmp_path / name).write_text(text)
    assert {path.name for path in tmp_path.iterdir()} == {"rings.py", "rings.yaml"}
    return tmp_path


def scalespec(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "scalespec", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_plans_and_runs(folder):
    small = ["--set", "data.limit=4000", "--set", "grid.width=[8, 16]", "--set", "grid.dropout=[0.0]"]
    assert "12 runs" in scalespec(folder, "plan", "rings.yaml", *small)
    assert "12 done" in scalespec(folder, "run", "rings.yaml", *small)
    runs = analysis.load(folder / "results/rings").runs
    assert set(runs["task"]) == {"rings:Rings"}
    assert "dropout" in runs.columns
    assert (runs["val_accuracy"] > 0.4).all()
