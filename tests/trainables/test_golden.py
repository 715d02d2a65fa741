"""The training loss of two tiny runs, step by step: what no refactoring may change.

The values were made by `tiny.train` with torch 2.13 on one thread of an x86-64 CPU with AVX-512, fp32; its kernels for AVX2 and
for no vectors at all (`ATEN_CPU_CAPABILITY=avx2|default`) give the same to 1e-6. If they change on purpose, raise
`LOOP_VERSION` or the task's `VERSION` and print them anew: `tiny.curve(run)` at the steps below.
"""

from __future__ import annotations

import pytest
import tiny

from scalespec.trainables.checkpoints import local_run

GOLDEN = {
    "gpt": {
        1: 4.2186379, 2: 4.3582258, 4: 4.3186622, 8: 4.2187171, 16: 3.9559240, 32: 3.5355959,
        48: 3.0667636, 64: 2.8631967, 96: 2.3622537, 128: 2.1404344, 160: 2.0789405, 224: 1.9543084,
    },
    "mnist_cnn": {
        1: 2.2687776, 2: 2.2779025, 4: 2.3108366, 8: 2.2727275, 16: 2.3085880, 32: 2.2444022,
        48: 2.1694478, 64: 1.8244123, 96: 0.6673076, 128: 0.8537191, 160: 0.6860603, 224: 0.5146074,
    },
}  # fmt: skip


@pytest.mark.parametrize("task", GOLDEN)
def test_losses_are_those_of_the_golden_curve(tmp_path, task):
    options = {"dropout": 0.2} if task == "mnist_cnn" else {}
    tiny.train(str(tmp_path / "run"), task, **options)
    found = tiny.curve(local_run(tmp_path / "run"))
    assert {step: found[step] for step in GOLDEN[task]} == pytest.approx(GOLDEN[task], abs=1e-6)
