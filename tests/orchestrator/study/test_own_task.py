"""A task of the user's own: where it may lie, that it is named before it runs, and what never imports it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trained import trained

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study import own_task
from studies import toy_yaml

MARK = "import pathlib; pathlib.Path({mark!r}).write_text('imported')\n"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_a_built_in_task_needs_no_path_and_no_word(tmp_path):
    before = sys.path.copy()
    for name in ("gpt", "mnist_cnn"):
        assert own_task.admit(tmp_path / "study.yaml", name) == ([], "")
    assert sys.path == before


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("rings_here:Rings", "rings_here.py"),
        ("pack_here:Rings", "pack_here/__init__.py"),
        ("pack_here.rings:Rings", "pack_here/rings.py"),
    ],
)
def test_a_module_beside_the_study_is_named_with_its_digest_and_not_imported(tmp_path, task, file):
    source = tmp_path / file
    source.parent.mkdir(exist_ok=True)
    (source.parent / "__init__.py").write_text("")
    source.write_text(MARK.format(mark=str(tmp_path / "mark")))
    paths, said = own_task.admit(tmp_path / "study.yaml", task)
    assert paths == [str(tmp_path)]
    assert said == f"task {task}: {source} (sha256 {digest(source)}…)"
    assert sys.path[-1] == str(tmp_path), "last, so that it hides nothing that is installed"
    own_task.admit(tmp_path / "study.yaml", task)
    assert sys.path.count(str(tmp_path)) == 1
    assert not (tmp_path / "mark").exists()


def test_an_installed_module_is_named_and_needs_no_path(tmp_path):
    paths, said = own_task.admit(tmp_path / "study.yaml", "toy_task:Toy")
    source = Path(__file__).parents[2] / "toy_task.py"
    assert paths == []
    assert said == f"task toy_task:Toy: {source} (sha256 {digest(source)}…)"


def test_a_module_that_is_nowhere_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(
        InputError, match=r"no module no_such\.rings beside .*study\.yaml, nor installed; put no_such/rings\.py there"
    ):
        own_task.admit(tmp_path / "study.yaml", "no_such.rings:Rings")
    (tmp_path / "pack_empty").mkdir()
    (tmp_path / "pack_empty/__init__.py").write_text("")
    with pytest.raises(InputError, match=r"no module pack_empty\.rings beside"):
        own_task.admit(tmp_path / "study.yaml", "pack_empty.rings:Rings")


def test_reading_verbs_import_nothing_of_the_study(scalespec, tmp_path, monkeypatch):
    """A study folder may come from anywhere: the code that it names is not run, even where it lies at hand."""
    trained(tmp_path / "toy", grid={"width": [8], "data_fraction": ["1"]}, data={"limit": 256}, report=False)
    monkeypatch.delitem(sys.modules, "toy_task")
    for verb in ("status", "analyze", "sync", "doctor"):
        study = tmp_path / "toy/study.yaml" if verb == "doctor" else tmp_path / "toy"
        said = scalespec(verb, study)
        assert said.code == 0 or verb == "doctor", said
        assert "toy_task" not in sys.modules, verb


@pytest.mark.slow
def test_what_lies_in_a_strangers_folder_is_not_imported(tmp_path):
    """Somebody works in a folder that was sent to them, with a study of their own elsewhere."""
    stranger, own = tmp_path / "stranger", tmp_path / "own"
    stranger.mkdir()
    own.mkdir()
    for name in ("rings_there", "yaml", "numpy", "ray"):
        (stranger / f"{name}.py").write_text(MARK.format(mark=str(tmp_path / "mark")))
    (own / "study.yaml").write_text(toy_yaml(task={"name": "rings_there:Rings"}))
    script = Path(sys.executable).with_name("scalespec")
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    for verb in ("plan", "run"):
        command = [str(script), verb, str(own / "study.yaml")]
        done = subprocess.run(command, cwd=stranger, env=kept, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "no module rings_there beside" in done.stderr
    assert not (tmp_path / "mark").exists()
