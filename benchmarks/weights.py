"""What one 64×64 layer of a 500 MB checkpoint costs: bytes read and memory, by range and by whole file.

    python benchmarks/weights.py [--megabytes N]

Each way runs in a process of its own that has imported everything before; its memory is what it takes beyond that. The spectral
stage asks Ray for `PROCESS_BYTES` and the layer's own bound, and must keep to the latter here.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing as mp
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from scalespec.analysis import spectral
from scalespec.orchestrator.spectra import stage
from scalespec.orchestrator.spectra.tensors import TensorFile
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.trainables.commits import read_committed
from scalespec.trainables.files import LocalFiles

LAYER, SIDE = "small.weight", 64


class Counted(LocalFiles):
    """The disk, with the bytes that were read."""

    read_bytes = 0

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        data = super().read(path, start, size)
        self.read_bytes += len(data)
        return data


def write_checkpoint(store: StudyStore, megabytes: int) -> str:
    """A committed checkpoint of large layers and a small one. Returns its path."""
    side = 2048
    rng = np.random.default_rng(0)
    weights = {f"layer{at:03d}.weight": torch.zeros(side, side) for at in range(megabytes * 10**6 // (4 * side**2))}
    weights[LAYER] = torch.from_numpy(rng.standard_normal((SIDE, SIDE)).astype(np.float32))
    folder = store.run("run")
    folder.save_weights(0, 0, 0.0, weights, {})
    return folder.history().checkpoints[0]


def by_range(files: Counted, path: str) -> np.ndarray[Any, Any]:
    return TensorFile(files, f"{path}/model.safetensors", committed=True).read(LAYER)


def whole_file(files: Counted, path: str) -> np.ndarray[Any, Any]:
    """The whole file is verified and loaded."""
    found = read_committed(files, path)
    assert found is not None
    loaded = safetensors.torch.load(found[1]["model.safetensors"])
    return loaded[LAYER].float().numpy()  # type: ignore[no-any-return]


def whole_task(files: Counted, path: str) -> str:
    """A task of the stage: the layer read and analysed."""
    owners = (("run", 0, 0),)
    ref = stage.Reference(f"{path}/model.safetensors", LAYER, (SIDE, SIDE), "dense", None, None, owners)
    (row,) = stage.analyse_block([ref], stage.Request(str(files.root), "ww-0.7.7", vectors=False))
    assert row["status"] == "ok", row
    return LAYER


def peak() -> int:
    """Bytes: the most memory that this process has had."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # the other figure begins at what the parent had
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def measure(root: str, path: str, how: str, out: Any) -> None:
    ways = {"by range": by_range, "whole file": whole_file, "task": whole_task}
    # what is imported and compiled at first use belongs to the process
    spectral.layer_rows("w", np.random.default_rng(1).standard_normal((SIDE, SIDE)), kind="dense", profile="ww-0.7.7")
    files, before = Counted(root), peak()
    found = ways[how](files, path)
    digest = "" if isinstance(found, str) else hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()
    out.put((files.read_bytes, peak() - before, before, digest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(StudyStore(folder), arguments.megabytes)
        header = int.from_bytes(LocalFiles(folder).read(f"{path}/model.safetensors", 0, 8), "little") + 8
        manifest = len(LocalFiles(folder).read(f"{path}/manifest.json"))
        context, found = mp.get_context("spawn"), {}
        for how in ("by range", "whole file", "task"):
            out = context.Queue()
            process = context.Process(target=measure, args=(folder, path, how, out))
            process.start()
            found[how] = out.get()
            process.join()
    tensor = 4 * SIDE**2
    asked = stage.PROCESS_BYTES + spectral.memory((SIDE, SIDE), "dense")
    assert found["by range"][3] == found["whole file"][3]
    print(
        f"a {SIDE}×{SIDE} layer ({tensor:,} bytes) of {arguments.megabytes} MB; header {header:,}, manifest {manifest:,} bytes"
    )
    for how in ("by range", "whole file"):
        print(f"{how:10}: {found[how][0]:>13,} bytes read, {found[how][1] / 1e6:8.1f} MB of memory over import")
    allowed = 1.2 * tensor + header + manifest
    print(f"bytes read / (1.2 × tensor + header + manifest): {found['by range'][0] / allowed:.2f} (at most 1)")
    _, more, before, _ = found["task"]
    print(
        f"a whole task: {more / 1e6:.1f} MB over {before / 1e6:.0f} MB of import; Ray is asked for {asked / 1e6:.0f} MB"
    )
    print(f"memory / asked: {(more + before) / asked:.2f} (at most 1)")


if __name__ == "__main__":
    main()
