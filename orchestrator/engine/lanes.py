"""Warm lanes: worker groups that live as long as the study has work for them. Tune starts and restarts them, the queue feeds them.

A lane is a Tune trial. With one worker on a CPU it is itself the worker, by Ray Train's local mode, and asks for the worker's
CPUs; with more, or on GPUs, it takes no CPU and starts a DDP group. Tune's own searchers hand out trials once; here a searcher
hands out a lane whenever the driver wants one, so a further round of a study finds its lanes warm.

Three processes import this module before a worker trains anything, so torch and the rest are imported where they are needed.
"""

from __future__ import annotations

import collections
import logging
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
RESTARTS = 100
"""Of a DDP group; what kills one before it reaches the queue would go on for ever."""

ANSWER_S = 60.0
"""An actor that does not answer for so long is gone, and with it the cluster."""


class NoRoomError(ValueError):
    """A worker group that no node, or not the whole cluster, can hold."""


class CodeDiffersError(RuntimeError):
    """A worker runs another scalespec than the driver."""


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
        """What the lanes have told since the last call; waits for something new, at most `timeout_s`."""
        news, self._version = self._ask(self.queue.news.remote(self._read, self._version, timeout_s), timeout_s)
        self._read = news.read
        with self._wishes.changed:
            for lane, _, what in news.hints:
                if what == "claim":
                    self._wishes.idle_deaths[lane] = 0
            ended, self._wishes.ended = self._wishes.ended, []
        for lane, why in ended:
            if reason := self._ask(self.queue.gone.remote(lane, why)):
                self.problems.append(f"{lane}: {reason}")
        found: News = news
        return found

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
        """Closes every lane and waits for them to end."""
        with self._wishes.changed:
            self._wishes.finished = True
            names = list(self._wishes.alive)
            self._wishes.changed.notify_all()
        self._ask(self.queue.close.remote(names))
        if self._thread.is_alive():
            self._thread.join(timeout_s)

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
                    wishes.ended += [(lane, words_of(error)) for lane in wishes.alive]
                    wishes.alive.clear()
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


def drive_lane(config: dict[str, Any]) -> dict[str, Any]:
    """The Tune trial of one lane."""
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # a name of its own for every attempt: Train would silently resume what it finds under an old one
    name = f"{config['lane']}-{config['session']}-{uuid.uuid4().hex[:8]}"
    storage = {"name": name, "storage_path": f"{config['root']}/.ray"}
    if is_local(config):
        scaling = ray.train.ScalingConfig(num_workers=0)
        DataParallelTrainer(
            work, train_loop_config=config, scaling_config=scaling, run_config=ray.train.RunConfig(**storage)
        ).fit()
        return {"error": ""}
    try:
        _group(config, storage).fit()
    except Exception as error:  # Train has restarted the group as often as it may
        return {"error": words_of(error)}
    return {"error": ""}


def _group(config: Mapping[str, Any], storage: Mapping[str, str]) -> Any:
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
        run_config=ray.train.RunConfig(**storage, failure_config=ray.train.FailureConfig(max_failures=RESTARTS)),
    )


def work(config: dict[str, Any]) -> None:
    """What each worker of a lane does: a unit after another, until the queue closes the lane."""
    import ray
    import torch

    from scalespec.orchestrator.engine.worker import Job, Worker
    from scalespec.orchestrator.store.folder import StudyStore
    from scalespec.orchestrator.version import fingerprint
    from scalespec.trainables.group import Group

    if fingerprint() != config["fingerprint"]:
        raise CodeDiffersError(
            "code_differs: this node has another scalespec than the driver; install the same on all nodes"
        )
    torch.set_num_threads(config["threads"])
    queue, lane, group = config["queue"], config["lane"], Group.current()

    def tell(folder: str, what: str) -> None:
        queue.tell.remote(lane, folder, what)

    worker = Worker(StudyStore(config["root"]), config["session"], config["code_version"], group, tell)
    attempt = str(group.agreed(uuid.uuid4().int >> 66))
    turn = 0
    asked = (lane, config["workers"], attempt)
    while isinstance(unit := ray.get(queue.take.remote(*asked, turn, group.rank == 0)), dict):
        worker.run(Job.from_json(job) for job in unit["jobs"])
        turn += 1
