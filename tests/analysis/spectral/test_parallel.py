"""Layers side by side: every result once, whatever happens to a process."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
from side_by_side import dies_once, refuses, square

from scalespec.analysis.spectral import analyze, each, shapes_first
from scalespec.analysis.spectral.parallel import WORTH_S


def test_little_work_stays_in_this_process():
    found = dict(each(square, [1, 2, 3], seconds=WORTH_S / 2, cpus=4, device="cpu"))
    assert found == {at: ((at + 1) ** 2, os.getpid()) for at in range(3)}


def test_much_work_is_done_by_other_processes():
    found = dict(each(square, list(range(20)), seconds=2 * WORTH_S, cpus=2, device="cpu"))
    assert {at: number for at, (number, _) in found.items()} == {at: at * at for at in range(20)}
    assert os.getpid() not in {process for _, process in found.values()}


def test_other_processes_give_the_same_rows():
    weights = [np.random.default_rng(seed).standard_normal((160, 130)) for seed in range(3)]
    work = functools.partial(analyze, kind="dense", trust=False, seed=5)
    here = dict(each(work, weights, seconds=0.0, cpus=2, device="cpu"))
    there = dict(each(work, weights, seconds=2 * WORTH_S, cpus=2, device="cpu"))
    for at in range(3):
        assert np.array_equal(here[at].pop("eigenvalues"), there[at].pop("eigenvalues"))
        assert here[at] == there[at]


def test_a_killed_process_costs_no_result(tmp_path):
    work = functools.partial(dies_once, mark=tmp_path / "died", parent=os.getpid())
    found = dict(each(work, list(range(8)), seconds=2 * WORTH_S, cpus=2, device="cpu"))
    assert (tmp_path / "died").exists()
    assert found == {at: at for at in range(8)}


@pytest.mark.parametrize("seconds", [0.0, 2 * WORTH_S])
def test_an_error_is_raised(seconds):
    with pytest.raises(ValueError, match="not 1"):
        list(each(refuses, [1, 1, 1], seconds=seconds, cpus=2, device="cpu"))


def test_the_costliest_of_each_shape_starts_first():
    shapes = [(8, 8), (8, 8), (4, 4), (8, 8), (2, 2)]
    assert shapes_first(shapes, [3.0, 4.0, 1.0, 2.0, 9.0]) == [4, 1, 2, 0, 3]


def test_threads_on_a_gpu_give_what_one_layer_at_a_time_gives():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((200, rank)) @ rng.standard_normal((rank, 150)) for rank in (150, 40, 150, 150)]
    for precision in ("float64", "float32"):
        work = functools.partial(analyze, kind="dense", trust=False, precision=precision)
        together = dict(each(functools.partial(work, device="cuda"), weights, seconds=0.0, cpus=1, device="cuda"))
        for at, weight in enumerate(weights):
            alone = work(weight, device="cuda")
            assert np.array_equal(together[at]["eigenvalues"], alone["eigenvalues"])
            assert together[at]["rank_loss"] == alone["rank_loss"]
