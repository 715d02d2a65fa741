"""The optimizers of a run, and what building one costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trained

from scalespec.trainables.rules.optimizer import optimizer, step
from scalespec.trainables.rules.scaling import ScaledOptim

ROOT = Path(__file__).parents[3]
OPTIM = ScaledOptim(0.1, (0.9, 0.95), 1e-8, 0.0)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_each_optimizer_steps_and_can_be_stored(name, kind):
    weight = torch.nn.Parameter(torch.ones(3))
    built = optimizer(name, [{"params": [weight], "lr": 0.1}], OPTIM)
    assert isinstance(built, kind)
    weight.square().sum().backward()
    step(built)
    built.zero_grad(set_to_none=True)
    assert weight.max() < 1
    again = optimizer(name, [{"params": [weight], "lr": 0.2}], OPTIM)
    again.load_state_dict(built.state_dict())
    assert again.param_groups[0]["lr"] == 0.1


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"optim\.name 'lion'"):
        optimizer("lion", [], OPTIM)


def test_a_worker_never_loads_the_compiler(tmp_path):
    """Two seconds of every process; if torch changes how it marks its optimizers, this says so."""
    study = trained.prepared(tmp_path / "toy", grid={"width": [8]}, data={"limit": 64})
    (tmp_path / "pack.json").write_text(json.dumps(trained.pack(study)))
    code = """
import json, sys
from scalespec.orchestrator.engine import worker
worker.run_pack(json.load(open(sys.argv[1])))
print("torch._dynamo" in sys.modules)
"""
    paths = {"PYTHONPATH": str(ROOT / "tests"), "PATH": "", "RAY_RAYLET_PID": "0"}
    typed = [sys.executable, "-c", code, str(tmp_path / "pack.json")]
    done = subprocess.run(typed, env=paths, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr[-2000:]
    assert list((tmp_path / "toy/runs").glob("*/e000001/result.json"))
