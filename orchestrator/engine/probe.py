"""How fast the runs of a study train here: a few real steps of each kind, measured once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scalespec.orchestrator.engine import cluster
from scalespec.orchestrator.study import grid, plan
from scalespec.orchestrator.study.file import parse_study, to_yaml
from scalespec.orchestrator.study.grid import Grid
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.keys import AUTO
from scalespec.trainables.probe import Speed
from scalespec.trainables.spec import RunSpec

PROBE_S = 0.5
"""Seconds of probing for each kind of run."""

Speeds = dict[tuple[Any, ...], Speed]


@dataclass
class Probe:
    """The measured speeds of a study's kinds of run; a further round of known shapes costs nothing."""

    study: Study
    machine: Machine
    known: Speeds = field(default_factory=dict)

    def speeds(self, points: Grid, runs: Sequence[RunSpec]) -> Speeds:
        """The speed of every kind among `runs`, measuring those that are new."""
        new = [spec for spec in runs if plan.speed_key(spec) not in self.known]
        if new and self.machine.gpus and not cluster.this_machine().gpus:
            # the head of a GPU cluster often has no GPU itself, and its CPU would take hours for one step
            self.known |= cluster.on_a_gpu(_probe_there, to_yaml(self.study), self.machine.cpus_per_worker)
        elif new:
            self.known |= plan.probe(points, new, threads=self.machine.cpus_per_worker, seconds=PROBE_S)
        return self.known


def _probe_there(text: str, threads: int) -> Speeds:
    points = grid.expand(parse_study(text, "study.yaml"), gpus=True)
    return plan.probe(points, points.runs, threads=threads, seconds=PROBE_S)


def with_room_for_spectra(study: Study, found: Machine) -> Machine:
    """With four CPUs or more and training on CPUs, one is kept for the spectral stage."""
    workers = 1 if study.train.workers == AUTO else study.train.workers
    room = found.cpus >= 4 and found.cpus > workers * study.resources.cpus_per_worker
    spare = 1 if study.spectra.every == "checkpoint" and room and not found.gpus else 0
    return replace(found, cpus=found.cpus - spare, cpus_per_worker=study.resources.cpus_per_worker)
