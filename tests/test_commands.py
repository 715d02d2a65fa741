"""Every command of README.md, CONTRIBUTING.md and the guide: run as it stands on small inputs, or held against its own parser."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml
from mnist_files import written
from safetensors.torch import save_file
from surfaces import EPOCH
from trained import trained

from scalespec.orchestrator import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/guide").glob("*.md")),
]
PROGRAMS = ("scalespec", "make", "python", "pytest", "ray")

NOT_RUN = {
    "scalespec run": "minutes; tests/orchestrator/test_run.py and test_own_task.py run studies",
    "scalespec ui": "serves until it is stopped",
    "scalespec sync": "needs a tracking server; tests/orchestrator/test_cli.py syncs to a file",
    "scalespec fit mlflow:": "needs a tracking server; tests/orchestrator/fit/test_user_tables.py reads one",
    "make": "makes an environment, and has the tests run within themselves",
    "python benchmarks/": "minutes; they are measurements",
    "pytest": "it is among these tests",
    "ray": "starts a cluster that stays",
}
"""Beginnings of commands that are only checked, and why they are not run."""


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]
    text: str
    """As a shell reads it."""
    inline: bool
    """Within a sentence, which may name a verb alone."""

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def why_not(self) -> str | None:
        if self.inline and (len(self.words) < 3 or self.words[-1].isupper()):
            return "names a verb, not a command"
        return next((why for start, why in NOT_RUN.items() if f"{self.name} ".startswith(start)), None)


def commands(page: Path) -> Iterator[Command]:
    name, text = str(page.relative_to(ROOT)), re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    block = r"(?:^    .*\n)+"
    for lines in re.findall(block, text, re.MULTILINE):
        for line in lines.replace("\\\n", " ").splitlines():
            yield from _of(name, line, inline=False)
    for span in re.findall(r"`([^`]+)`", re.sub(block, "", text, flags=re.MULTILINE)):
        yield from _of(name, span, inline=True)


def _of(page: str, line: str, inline: bool) -> Iterator[Command]:
    """The commands of one line: parts between `&&`, and what stands behind the `--` of another command."""
    for part in re.split(r"&&| -- ", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:  # a sentence with an apostrophe
            continue
        while words and (words[0] == "time" or re.match(r"[A-Z_]+=", words[0])):
            del words[0]
        words = [word for word in words if word != "…"]
        words = words[: words.index(">")] if ">" in words else words
        if words[:3] in (["python", "-m", "orchestrator"], ["python", "-m", "scalespec"]):  # the same command line
            words = ["scalespec", *words[3:]]
        if words and words[0] in PROGRAMS and len(words) > 1:
            yield Command(page, tuple(words), part.strip(), inline)


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
RUN = [command for command in COMMANDS if command.why_not is None]


def ids(found: list[Command]) -> list[Any]:
    return [pytest.param(command, id=f"{command.page}: {command.name}") for command in found]


# -- all: known to their parsers -------------------------------------------------------------------------------------------


def parsed(group: Any, words: list[str], whole: bool) -> None:
    """Raises where the command line does not know a verb or option, or, of a whole command, lacks an argument."""
    context = group.make_context("", words[:1], resilient_parsing=True)
    verb = group.get_command(context, words[0])
    assert verb is not None, f"no verb {words[0]}"
    if hasattr(verb, "commands"):
        parsed(verb, words[1:], whole)
        return
    if whole:
        verb.make_context(words[0], words[1:], parent=context)
        return
    options = {option for param in verb.params for option in param.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules, when its command line is imported
@pytest.mark.parametrize("command", ids(COMMANDS))
def test_it_is_known(command):
    program, *rest = command.words
    whole = command.why_not != "names a verb, not a command"
    if program == "scalespec":
        parsed(typer.main.get_command(cli.app), rest, whole)
    elif program == "ray":
        from ray.scripts.scripts import cli as ray_cli

        parsed(ray_cli, rest, whole=False)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in rest:
            found = rf"^{word.partition('=')[0]} \?=" if "=" in word else rf"^{word}:"
            assert re.search(found, makefile, re.MULTILINE), word
    else:
        file, *options = rest
        source = (ROOT / file).read_text()
        for word in options:
            # options as argparse is told them; values, and what `-k` looks for in the names of tests
            assert word == "-k" or re.search(rf"\b{re.escape(word.lstrip('-').partition(',')[0])}", source), word


def test_every_kind_of_command_is_found():
    assert {command.words[0] for command in COMMANDS} == set(PROGRAMS)
    for start in NOT_RUN:
        assert any(f"{command.name} ".startswith(start) for command in COMMANDS), f"nothing begins with {start}"


def test_every_verb_that_is_fast_is_run():
    assert {command.words[1] for command in RUN} >= {"plan", "status", "analyze", "fit", "spectra", "doctor"}


# -- those that take seconds: run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the pages speak of, small. A name in capitals that stands for a reader's own is a folder of that name."""
    place = tmp_path_factory.mktemp("commands")
    shutil.copytree(ROOT / "studies", place / "studies")
    for file in (place / "studies").iterdir():
        study = yaml.safe_load(file.read_text())
        if "grid" in study:
            study["grid"] |= {"width": [8, 16], "data_fraction": [1, "1/2"]}
        study["data"] |= {"limit": 600} | ({"path": "DIR"} if study["data"]["source"] == "mnist" else {})
        file.write_text(yaml.safe_dump(study))
    (place / "DIR").mkdir()
    written(place / "DIR", train=600, test=100)
    own = (ROOT / "docs/own-task.md").read_text()
    for name, text in re.findall(r"```\w+\n# (rings\.\w+)\n(.*?)```", own, re.DOTALL):
        (place / name).write_text(text)
    small = {"grid": {"width": [8], "data_fraction": ["1", "1/2"]}, "data": {"limit": 256}, "train": {"checkpoints": 3}}
    trained(place / "results/mnist", **small)
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 5e9, 6), np.geomspace(1e9, 2e11, 6)))
    loss = EPOCH["E"] + EPOCH["A"] * n ** -EPOCH["alpha"] + EPOCH["B"] * d ** -EPOCH["beta"]
    pd.DataFrame({"params": n, "tokens": d, "loss": loss}).to_csv(place / "runs.csv", index=False)
    chinchilla = pd.DataFrame({"Model Size": n, "Training FLOP": 6 * n * d, "loss": loss})
    chinchilla.to_csv(place / "chinchilla_epoch.csv", index=False)
    weights = {"layer.weight": torch.randn(60, 40, generator=torch.Generator().manual_seed(0))}
    (place / "MODEL_DIR").mkdir()
    for path in (place / "model.safetensors", place / "MODEL_DIR/model.safetensors"):
        save_file(weights, path)
    for epoch in (1, 2):
        torch.save(weights, place / f"epoch_{epoch}.pt")
    (place / "bin").mkdir()
    script = place / "bin/scalespec"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m scalespec "$@"\n')
    script.chmod(0o755)
    return place


@pytest.mark.parametrize("command", ids(RUN))
def test_it_runs(command, folder):
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", "-c", command.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    named = re.findall(r"(?:--out|--plots|>) (\S+)", command.text)
    assert done.stdout or named
    assert all((folder / name).exists() for name in named)
