"""`import scalespec as ss`: what is there, what it costs, and a notebook that uses nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scalespec as ss

HEAVY = "{'torch', 'ray', 'mlflow'} & set(sys.modules)"


def ran(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_public_name_is_there_and_nothing_else_is_shown():
    assert dir(ss) == sorted(ss.__all__)
    for name in ss.__all__:
        assert getattr(ss, name) is not None
        assert getattr(ss, name).__doc__


def test_the_types_that_a_checker_sees_are_those_that_are_there():
    tree = ast.parse(Path(str(ss.__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    stubs = {
        alias.asname or alias.name: f"{str(node.module).removeprefix('scalespec.')}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert stubs == ss._HOME
    assert set(stubs) | {"__version__"} == set(ss.__all__)


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="no attribute 'predict'; it has DataConfig"):
        _ = ss.predict


def test_reading_loads_neither_torch_nor_ray_nor_mlflow():
    assert ran(f"import scalespec as ss, sys; before = len(sys.modules); ss.load; ss.fit; print({HEAVY})") == "set()"
    assert ran("import scalespec, sys; print({'numpy', 'pandas'} & set(sys.modules))") == "set()"


def test_training_one_run_loads_neither_ray_nor_mlflow():
    assert ran("import scalespec as ss, sys; ss.train, ss.Task; print({'ray', 'mlflow'} & set(sys.modules))") == "set()"


def test_the_command_line_says_its_version():
    done = subprocess.run([sys.executable, "-m", "scalespec", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"scalespec {ss.__version__}\n"


NOTEBOOK = """
import scalespec as ss

import numpy as np
import pandas as pd

# 1. a table of runs, as anyone has it: sizes, tokens, losses with a noise of 0.2 %
n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 5e9, 7), np.geomspace(1e9, 2e11, 6)))
noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(n)))
runs = pd.DataFrame({"params": n, "tokens": d, "loss": (1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28) * noise})

# 2. a law of it
law = ss.fit(runs, n="params", d="tokens", loss="loss", form="auto")
assert "converged" in law.status
for name, truth in {"alpha": 0.34, "beta": 0.28, "E": 1.69}.items():
    assert law.params[name].lo < truth < law.params[name].hi, name
assert "α = 0.3" in law.verdict

# 3. what follows: the best size for a budget (eq. 4 of arXiv:2203.15556), a forecast, a picture
best = law.best(c=1e21)
exact = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62) * (1e21 / 6) ** (0.28 / 0.62)
assert best.n.lo < exact < best.n.hi
assert abs(best.n.value * best.d.value * 6 / 1e21 - 1) < 1e-9
there = law.forecast(n=1e10, d=1e12)
assert there.law_lo < there.value == law.loss(1e10, 1e12) < there.law_hi
assert there.lo < there.law_lo and there.hi > there.law_hi
law.plot().savefig("law.svg")

try:
    ss.fit(runs, n="params", d="token", loss="loss")
except ss.InputError as error:
    assert str(error) == "d token: no such column; the table has: params, tokens, loss"
"""


def test_a_notebook_goes_from_a_table_to_a_law_its_optimum_and_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(NOTEBOOK, "notebook", "exec"), {})
    assert (tmp_path / "law.svg").read_text().startswith("<?xml")
