"""Warm lanes: worker groups that live as long as the study has work for them. Tune starts and restarts them, the queue feeds them.

A lane is a Tune trial. With one worker on a CPU it is itself the worker, by Ray Train's local mode, and asks for the worker's
CPUs; with more, or on GPUs, it takes no CPU and starts a DDP group. Tune's own searchers hand out trials once; here a searcher
hands out a lane whenever the driver wants one, so a further round of a study finds its lanes warm.

Three processes import this module before a worker trains anything, so torch and the rest are imported where they are needed.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scalespec.orchestrator.engine.queue import News, Queue
from scalespec.orchestrator.engine.wishes import Wishes, is_local, words_of
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.units import Unit

COLLECTIVE_TIMEOUT_S = 600

ANSWER_S = 60.0
"""An actor that does not answer for so long is gone, and with it the cluster."""


class NoRoomError(ValueError):
    """A worker group that no node, or not the whole cluster, can hold."""


class CodeDiffersError(RuntimeError):
    """A node runs another scalespec than the driver."""


CODE_DIFFERS = "code_differs"
"""How the reason of a lane begins that has ended so."""


@dataclass(frozen=True)
class Settings:
    """What every lane of a study needs to know; plain values, since Ray pickles it."""

    root: str
    session: str
    threads: int
    use_gpu: bool
    code_version: str | None
    fingerprint: str
    """Of the driver's own source: a worker with another one must not train."""
    folder: str = "/"
    """Where the driver was started: relative paths of a study mean the same to its workers, on every node that has this folder."""


class Lanes:
    """All lanes of a study, driven from one thread."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        import ray

        self.settings, self.machine, self.problems = settings, machine, list[str]()
        name = f"scalespec-queue-{settings.session}-{uuid.uuid4().hex[:6]}"
        self.queue = ray.remote(num_cpus=0, name=name)(Queue).remote()
        self._wishes, self._read, self._version, self._count = Wishes(), 0, -1, 0
        self._thread = threading.Thread(target=self._tune, name="lanes", daemon=True)

    def add(self, units: Sequence[Unit]) -> None:
        """More work. Raises NoRoomError for a group that can never be placed: a static cluster would wait for ever."""
        for workers in {unit.workers for unit in units}:
            check_room(workers, self.machine)
        self._ask(self.queue.add.remote(units))

    def news(self, timeout_s: float) -> News:
        """What the lanes have told since the last call; waits for something new, at most `timeout_s`. Raises CodeDiffersError."""
        for reason in self._bury():
            if reason.startswith(CODE_DIFFERS):
                raise CodeDiffersError(reason)
        news, self._version = self._ask(self.queue.news.remote(self._read, self._version, timeout_s), timeout_s)
        self._read = news.read
        with self._wishes.changed:
            for lane, _, what in news.hints:
                if what == "claim":
                    self._wishes.idle_deaths[lane] = 0
        found: News = news
        return found

    def _bury(self) -> list[str]:
        """Tells the queue which lanes have ended: what they had is pending again, or given up. Returns the reasons."""
        with self._wishes.changed:
            ended, self._wishes.ended = self._wishes.ended, []
            for lane, _ in ended:
                self._wishes.alive.pop(lane, None)
        told = [(lane, self._ask(self.queue.gone.remote(lane, why))) for lane, why in ended]
        self.problems += [f"{lane}: {reason}" for lane, reason in told if reason]
        return [reason for _, reason in told if reason]

    def adjust(self, changes: Mapping[int, int], waiting: Mapping[str, int]) -> None:
        """Starts lanes, and closes waiting ones: `changes` as from `board.wanted`."""
        for workers, count in changes.items():
            if count < 0:
                names = [name for name, size in waiting.items() if size == workers]
                self._ask(self.queue.close.remote(names[:-count]))
            for _ in range(count):
                self._open(workers)

    def alive(self) -> dict[int, int]:
        """Number of workers → lanes that are there or starting."""
        with self._wishes.changed:
            return dict(collections.Counter(self._wishes.alive.values()))

    def finish(self, timeout_s: float = ANSWER_S) -> None:
        """Closes every lane and waits for them to end. A cluster that is gone has closed them already."""
        from ray.exceptions import RayError

        with self._wishes.changed:
            self._wishes.finished = True
            names = list(self._wishes.alive)
            self._wishes.changed.notify_all()
        with contextlib.suppress(RayError):
            self._ask(self.queue.close.remote(names))
            if self._thread.is_alive():
                self._thread.join(timeout_s)
            self._bury()

    def _open(self, workers: int) -> None:
        self._count += 1
        name = f"lane-{self._count}"
        config = {"lane": name, "workers": workers, "cpus": self.machine.cpus_per_worker, "queue": self.queue}
        with self._wishes.changed:
            self._wishes.wanted.append({**config, **asdict(self.settings)})
            self._wishes.alive[name] = workers
            self._wishes.changed.notify_all()
        if not self._thread.is_alive():
            self._thread.start()

    def _ask(self, answer: Any, more_s: float = 0.0) -> Any:
        import ray

        return ray.get(answer, timeout=ANSWER_S + more_s)

    def _tune(self) -> None:
        """One Tune experiment for as long as there are lanes: without any, Tune would spin."""
        wishes = self._wishes
        while True:
            with wishes.changed:
                wishes.changed.wait_for(lambda: wishes.wanted or wishes.finished)
                if not wishes.wanted:
                    return
            try:
                self._fit()
            except Exception as error:  # named by the driver; the runs that have no result are missing
                with wishes.changed:
                    words = words_of(f"{type(error).__name__}: {error}")
                    wishes.ended += [(lane, words) for lane in sorted(wishes.left())]
                    wishes.wanted.clear()

    def _fit(self) -> None:
        from ray import tune

        from scalespec.orchestrator.engine.tuning import LaneCallback, LaneSearcher, resources

        tune.Tuner(
            tune.with_resources(drive_lane, resources),
            tune_config=tune.TuneConfig(search_alg=LaneSearcher(self._wishes), num_samples=-1),
            run_config=tune.RunConfig(
                name=f"lanes-{self.settings.session}-{uuid.uuid4().hex[:6]}",
                storage_path=f"{self.settings.root}/.ray",
                verbose=0,
                callbacks=[LaneCallback(self._wishes)],
                failure_config=tune.FailureConfig(max_failures=-1),
            ),
        ).fit()


def check_room(workers: int, machine: Machine) -> None:
    """Raises NoRoomError where `workers` do not fit."""
    have, need = (machine.gpus, workers) if machine.gpus else (machine.cpus, workers * machine.cpus_per_worker)
    if need > have:
        kind = "GPUs" if machine.gpus else "CPUs"
        raise NoRoomError(
            f"train.workers: {workers} workers need {need} {kind}, Ray has {have}; lower train.workers or add nodes"
        )


def drive_lane(config: dict[str, Any]) -> dict[str, int]:
    """The Tune trial of one lane. What kills its workers is raised, so that Tune starts it again."""
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # a name of its own for every attempt: Train would silently resume what it finds under an old one
    name = f"{config['lane']}-{config['session']}-{uuid.uuid4().hex[:8]}"
    run_config = ray.train.RunConfig(name=name, storage_path=f"{config['root']}/.ray")
    if is_local(config):
        scaling = ray.train.ScalingConfig(num_workers=0)
        DataParallelTrainer(work, train_loop_config=config, scaling_config=scaling, run_config=run_config).fit()
    else:
        _group(config, run_config).fit()
    return {"closed": 1}  # of a trial without a result Tune prints a line, whatever its verbosity


def _group(config: Mapping[str, Any], run_config: Any) -> Any:
    """A DDP group of Ray Train."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = config["use_gpu"]
    return TorchTrainer(
        work,
        train_loop_config=dict(config),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config["workers"],
            use_gpu=gpu,
            resources_per_worker={"CPU": config["cpus"]} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=run_config,
    )


def work(config: dict[str, Any]) -> None:
    """What each worker of a lane does: a unit after another, until the queue closes the lane."""
    import ray
    import torch

    from scalespec.orchestrator.engine.worker import Job, Worker
    from scalespec.orchestrator.store.folder import StudyStore
    from scalespec.orchestrator.version import fingerprint
    from scalespec.trainables.group import Group

    queue, lane, group = config["queue"], config["lane"], Group.current()
    differs = fingerprint() != config["fingerprint"]
    if differs:
        has = f"node {socket.gethostname()} has another scalespec than the driver"
        ray.get(queue.refuse.remote(lane, config["workers"], f"{CODE_DIFFERS}: {has}; install the same on all nodes"))
    if group.total(torch.tensor([int(differs)], device=group.device)).item():
        return  # the whole group, or the others would wait for the one that has left
    torch.set_num_threads(config["threads"])
    with contextlib.suppress(OSError):
        os.chdir(config["folder"])

    def tell(folder: str, what: str) -> None:
        queue.tell.remote(lane, folder, what)

    worker = Worker(StudyStore(config["root"]), config["session"], config["code_version"], group, tell)
    attempt = str(group.agreed(uuid.uuid4().int >> 66))
    turn = 0
    asked = (lane, config["workers"], attempt)
    while isinstance(unit := ray.get(queue.take.remote(*asked, turn, group.rank == 0)), dict):
        worker.run(Job.from_json(job) for job in unit["jobs"])
        turn += 1
