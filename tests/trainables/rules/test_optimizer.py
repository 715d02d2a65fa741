"""The optimizers of a run, and what building one costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import trained

from scalespec.trainables.rules.optimizer import optimizer, step
from scalespec.trainables.rules.scaling import ScaledOptim

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


GPT = {
    "task": {"name": "gpt", "context": 16},
    "data": {"source": "stdlib", "tokenizer": "bytes", "limit": 256},
    "optim": {"lr": 0.01, "batch_size": 16, "reference": {"width": 16, "batch_size": 16}, "width_rule": "mup"},
}


@pytest.mark.parametrize("changes", [{"data": {"limit": 64}}, GPT], ids=["mlp", "gpt"])
def test_a_worker_never_loads_the_compiler(tmp_path, changes):
    """Two seconds of every process: neither to build a model, with embeddings too, nor its reference, nor to train it.

    The job brings the counts. If torch changes how it marks its optimizers or meta kernels, this says so.
    """
    study = trained.prepared(tmp_path / "toy", grid={"width": [8]}, **changes)
    (tmp_path / "jobs.json").write_text(json.dumps([job.to_json() for job in trained.jobs(study)]))
    code = """
import json, sys
from scalespec.orchestrator.engine.worker import Job, Worker
from scalespec.orchestrator.store.folder import StudyStore
Worker(StudyStore(sys.argv[2]), "session", "test").run(map(Job.from_json, json.load(open(sys.argv[1]))))
print("torch._dynamo" in sys.modules)
"""
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": "", "RAY_RAYLET_PID": "0"}
    typed = [sys.executable, "-c", code, str(tmp_path / "jobs.json"), study.store.root]
    done = subprocess.run(typed, env=paths, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr[-2000:]
    results = [json.loads(file.read_text()) for file in (tmp_path / "toy/runs").glob("*/e*/result.json")]
    assert [result["status"] for result in results] == ["done"] * len(study.specs)
