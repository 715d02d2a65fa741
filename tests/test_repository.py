"""What stands beside the code agrees with it: ranges and their lowest versions, workflow, hooks, citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def pinned(name: str) -> dict[str, Version]:
    """Package, in lower case → version, of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {
        package.lower(): Version(version) for package, _, version in (line.partition("==") for line in lines if line)
    }


def declared() -> dict[str, Requirement]:
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["s3"]]
    return {requirement.name.lower(): requirement for requirement in map(Requirement, texts)}


def test_the_lowest_versions_are_those_of_the_ranges():
    ends = {
        name: next(Version(one.version) for one in requirement.specifier if one.operator == ">=")
        for name, requirement in declared().items()
    }
    assert pinned("constraints-lowest.txt") == {name: end for name, end in ends.items() if name != "torch"}


@pytest.mark.parametrize("name", ["ray", "mlflow"])
def test_engines_may_be_of_several_minor_versions(name):
    allowed, lowest = declared()[name].specifier, pinned("constraints-lowest.txt")[name]
    newest = pinned("constraints.txt")[name]
    assert lowest in allowed
    assert newest in allowed
    assert newest.minor > lowest.minor + 1


def test_what_is_installed_by_default_lies_in_the_ranges():
    versions = pinned("constraints.txt")
    extras = [Requirement(text) for group in PROJECT["optional-dependencies"].values() for text in group]
    for requirement in [*declared().values(), *extras]:
        assert versions[requirement.name.lower()] in requirement.specifier, requirement.name


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    return found


def test_the_workflow_has_every_python_of_the_range():
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    tested = workflow()["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]


def test_workflow_and_hooks_call_what_there_is():
    said = (ROOT / ".github/workflows/ci.yml").read_text() + (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"\bmake ([a-z]+)", said)) <= TARGETS
    for path in re.findall(r"\b(?:tests|studies)/[\w/.]+|constraints[\w-]*\.txt", said):
        assert (ROOT / path).exists(), path


def test_the_workflow_may_write_nothing_and_knows_no_secret():
    assert workflow()["permissions"] == {"contents": "read"}
    assert "secrets." not in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_forms_of_issues_can_be_read(path):
    form = yaml.safe_load(path.read_text())
    if path.stem != "config":
        assert {"name", "description", "body"} <= set(form)
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))
        assert all(part["attributes"]["label"] for part in form["body"])


def test_a_fragment_is_a_bullet_of_the_changelog():
    for path in (ROOT / "changelog.d").glob("[a-z]*.md"):
        assert path.read_text().startswith("- "), path.name


def test_what_contributors_are_sent_to_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`((?:analysis|trainables|orchestrator|scalespec|docs|tests)/[\w./]*)`", text))
    assert "analysis/tables.py" in paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
