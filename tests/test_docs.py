"""Every Python block of README.md and docs/ runs as it stands, in a folder that has what the text before it speaks of; the reference is whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from finished import finished
from surfaces import EPOCH

import scalespec as ss
from scalespec.orchestrator import cli
from scalespec.orchestrator.study.file import parse_study
from scalespec.orchestrator.terminal import verbs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "decisions" not in page.parts)]
BLOCKS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("docs")
    finished(place / "results/quickstart")
    shutil.copytree(ROOT / "studies", place / "studies")
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 5e9, 6), np.geomspace(1e9, 2e11, 6)))
    loss = EPOCH["E"] + EPOCH["A"] * n ** -EPOCH["alpha"] + EPOCH["B"] * d ** -EPOCH["beta"]
    pd.DataFrame({"params": n, "tokens": d, "loss": loss}).to_csv(place / "runs.csv", index=False)
    own = (ROOT / "docs/own-task.md").read_text()
    for name, text in re.findall(r"```\w+\n# (rings\.\w+)\n(.*?)```", own, re.DOTALL):
        (place / name).write_text(text)
    return place


def test_there_are_blocks():
    assert {param.id.rpartition("-")[0] for param in BLOCKS} >= {"README.md", "docs/own-task.md"}


@pytest.mark.parametrize("text", BLOCKS)
def test_it_runs(text, folder):
    # as a script or notebook in that folder sees it: its own modules can be imported
    search = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs/reference/api.md").read_text()
    documented = set(re.findall(r"scalespec\.(\w+)", page))
    assert documented >= set(ss.__all__) - {"__version__"}


def test_the_page_of_verbs_is_that_of_the_command_line():
    page = ROOT / "docs/reference/verbs.md"
    assert page.read_text(encoding="utf-8") == verbs.markdown(cli.app), "`make docs` writes it"


@pytest.mark.parametrize("page", ["README.md", "docs/own-task.md"])
def test_only_the_public_door_is_used(page):
    for text in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        assert not re.search(r"(from|import) (scalespec\.|analysis|orchestrator|trainables)", text)


def found(pattern: str) -> list[Any]:
    """What is found in each page, named by the page."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        if "reference" not in page.parts
        for number, text in enumerate(re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL))
    ]


@pytest.mark.parametrize("text", found(r"^```yaml\n(.*?)^```"))
def test_a_study_that_is_shown_is_valid(text):
    """What a page leaves out of a study is what the page shows elsewhere."""
    rest = {"name": "shown", "task": "gpt", "data": {"source": "stdlib"}}
    rest["optim"] = {"lr": 1e-3, "batch_size": 8, "reference": {"width": 32, "batch_size": 8}}
    said = yaml.safe_load(text)
    study = parse_study(yaml.safe_dump({**rest, **said}), "shown.yaml")
    assert len(study.stages) == len(said.get("design", ["grid"]))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(ROOT))) for page in [*PAGES, *(ROOT / "docs/decisions").glob("*.md")]],
)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
