"""How soon a further round of a study trains: from its ask's commit to the first claim and the first step of each lane.

    python benchmarks/rounds.py [--study DIR]

A study that tunes the rate of two widths: its later rounds have the same data and the shapes of the first, and more units than
lanes. A lane is a process that claims runs. With --study a finished study's folder is read instead (its lanes must have been of
one driver). On a machine that others use the times say as much of them as of the study: the load is printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common

TUNED: dict[str, Any] = {
    **common.SMALL,
    "name": "rounds",
    "design": [
        {
            "name": "tuned",
            "tune": {"key": "optim.lr", "factor": 1.5, "count": 4, "rounds": 3, "seed": [0, 1]},
            "grid": {"width": [16, 32], "seed": [0, 1, 2, 3]},
        }
    ],
    "optim": {"lr": 0.1, "batch_size": 32, "reference": {"width": 32, "batch_size": 32}},
    "train": {"checkpoints": 4},
    "spectra": {"every": "never"},
    "report": False,
}


def rounds(root: Path) -> list[tuple[int, str, dict[int, tuple[float, float]]]]:
    """Of each ask its number, why, and by process the seconds until its first claim and first step after the ask."""
    claims = common.claims(root)
    asks = sorted(root.glob("asks/*.json"))
    times = [file.stat().st_mtime for file in asks]
    out = []
    for at, file in enumerate(asks):
        ask = json.loads(file.read_text())
        keys = {point["run_key"] for point in ask["points"]}
        end = times[at + 1] if at + 1 < len(asks) else float("inf")
        found: dict[int, tuple[float, float]] = {}
        for when, pid, run in claims:
            if times[at] <= when < end and run.name in keys and pid not in found:
                found[pid] = (when - times[at], common.first_step(run) - times[at])
        out.append((ask["number"], ask["why"], found))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root, began = arguments.study, time.time()
        if root is None:
            home = Path(temporary)
            file = common.written(home, TUNED)
            assert common.scalespec("run", file, "--storage", home).wait() == 0
            root = home / TUNED["name"]
        found = rounds(root)
    worst = 0.0
    for number, why, lanes in found:
        print(f"ask {number} ({why}): ", end="")
        print(", ".join(f"claim {claim:.2f} s, first step {step:.2f} s" for claim, step in lanes.values()))
        worst = max([worst, *(step for _, step in lanes.values())]) if number > 1 else 0.0
    print(f"later rounds: at most {worst:.2f} s from the ask to a lane's first step (asked: 2); {common.load()}")
    print(f"in all {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
