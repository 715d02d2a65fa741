"""What the spectral stage costs beyond its mathematics: 2,000 matrices on Ray Data beside two bare processes.

    python benchmarks/stage.py [--matrices N]

Both read the same committed checkpoints, compute the same columns of the same matrices (256×256 to 768×768) with the full
verdict, and must give equal rows. Start-up is excluded from both: each has computed a few matrices before its clock starts.
The bare processes share a queue of the same blocks, so that neither waits for the other.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch

from scalespec.orchestrator.engine import cluster
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.store.folder import StudyStore

SIDES = (256, 384, 512, 640, 768)
A_CHECKPOINT = 10
CPUS = 2
KEYS = ("run_key", "step", "layer")


def write_checkpoints(store: StudyStore, matrices: int, run_key: str) -> list[stage.Reference]:
    """Committed checkpoints with `A_CHECKPOINT` heavy-tailed matrices each, and references to all of them."""
    rng = np.random.default_rng(0)
    refs, folder = [], store.run(run_key)
    folder.claim("benchmark")
    for step in range(matrices // A_CHECKPOINT):
        shapes = [(int(rng.choice(SIDES)), int(rng.choice(SIDES))) for _ in range(A_CHECKPOINT)]
        weights = {
            f"layer{at}.weight": torch.from_numpy(rng.standard_t(4, s).astype(np.float32))
            for at, s in enumerate(shapes)
        }
        folder.save_weights(step, step, 0.0, weights, {})
        path = f"{folder.path}/checkpoints/step-{step:08d}/model.safetensors"
        assert store.files.read(path)
        refs += [
            stage.Reference(path, name, tuple(value.shape), "dense", None, None, ((run_key, step, step),))
            for name, value in weights.items()
        ]
    return refs


def bare_process(blocks: Any, request: stage.Request, warm: Sequence[stage.Reference], barrier: Any, out: Any) -> None:
    stage.analyse_block(warm, request)
    barrier.wait()
    began, rows = time.time(), []
    while (block := blocks.get()) is not None:
        rows += stage.analyse_block(block, request)
    out.put((began, time.time(), [{name: row.get(name) for name in (*KEYS, "alpha", "trusted")} for row in rows]))


def bare(
    refs: Sequence[stage.Reference], request: stage.Request, warm: Sequence[stage.Reference]
) -> tuple[float, list[Any]]:
    """Seconds from the first block to the last row, and the rows."""
    context = mp.get_context("spawn")
    blocks, out, barrier = context.Queue(), context.Queue(), context.Barrier(CPUS)
    for block in [*stage.blocks(refs, CPUS), *[None] * CPUS]:
        blocks.put(block)
    processes = [context.Process(target=bare_process, args=(blocks, request, warm, barrier, out)) for _ in range(CPUS)]
    for process in processes:
        process.start()
    found = [out.get() for _ in processes]
    for process in processes:
        process.join()
    return max(f[1] for f in found) - min(f[0] for f in found), [row for f in found for row in f[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = StudyStore(folder)
        warm = write_checkpoints(store, 4 * A_CHECKPOINT, "warm")
        refs = write_checkpoints(store, arguments.matrices, "run")
        request = stage.Request(store.root, "ww-0.7.7", vectors=False)
        before, _ = bare(refs, request, warm)
        with cluster.connected():
            stage.run_stage(store, warm, request, CPUS)
            began = time.perf_counter()
            count = stage.run_stage(store, refs, request, CPUS)
            ours = time.perf_counter() - began
        after, rows = bare(refs, request, warm)
        stored = stage.stored(store).select([*KEYS, "alpha", "trusted"]).to_pylist()
    expected = {tuple(row[name] for name in KEYS): row for row in rows}
    assert count == len(refs) == len(rows)
    assert all(row == expected[tuple(row[name] for name in KEYS)] for row in stored if row["run_key"] == "run")
    theirs = (before + after) / 2
    print(
        f"{count} matrices on {CPUS} CPUs: stage {ours:.1f} s, bare processes {before:.1f} s before and {after:.1f} s after"
    )
    print(f"ratio {ours / theirs:.3f} (at most 1.15)")


if __name__ == "__main__":
    main()
