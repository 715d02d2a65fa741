"""Packs on Ray: what is refused before it starts, what becomes of a pack that cannot work."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from trained import Trained, prepared, result_path

from scalespec.orchestrator.engine.pack import attempt, drive_pack, words_of
from scalespec.orchestrator.engine.sweep import NoRoomError, Sweep, check_room, results_of, train_packs
from scalespec.orchestrator.run import all_jobs, with_room_for_spectra
from scalespec.orchestrator.study.plan import Pack
from scalespec.orchestrator.study.resources import Machine
from studies import toy

SMALL = {"grid": {"width": [8], "data_fraction": ["1"], "seed": [0, 1]}, "data": {"limit": 256}}


@pytest.mark.parametrize(
    ("workers", "machine", "words"),
    [
        (1, Machine(2, 0), None),
        (2, Machine(2, 0), None),
        (3, Machine(2, 0), "3 workers need 3 CPUs, Ray has 2"),
        (1, Machine(2, 0, 4), "1 workers need 4 CPUs, Ray has 2"),
        (2, Machine(2, 0, 2), "2 workers need 4 CPUs, Ray has 2"),
        (1, Machine(0, 0), "1 workers need 1 CPUs, Ray has 0"),
        (4, Machine(8, 4), None),
        (8, Machine(64, 4), "8 workers need 8 GPUs, Ray has 4"),
    ],
)
def test_a_group_that_no_cluster_can_hold_is_refused(workers, machine, words):
    if words is None:
        check_room(workers, machine)
        return
    with pytest.raises(NoRoomError, match=f"train.workers: {words}; lower train.workers or add nodes"):
        check_room(workers, machine)


@pytest.mark.parametrize(
    ("found", "workers", "every", "kept"),
    [
        (Machine(2, 0), "auto", "checkpoint", 2),
        (Machine(4, 0), "auto", "checkpoint", 3),
        (Machine(4, 0), "auto", "last", 4),
        (Machine(4, 0), 2, "checkpoint", 3),
        (Machine(4, 0), 4, "checkpoint", 4),  # all CPUs are asked for, so none is kept
        (Machine(16, 4), "auto", "checkpoint", 16),
    ],
)
def test_a_cpu_is_kept_for_spectra_where_there_is_one_to_spare(found, workers, every, kept):
    study = toy(train={"workers": workers}, spectra={"every": every})
    machine = with_room_for_spectra(study, found)
    assert machine.cpus == kept
    if workers != "auto":
        check_room(workers, machine)


def test_attempts_never_share_a_name():
    assert len({attempt() for _ in range(100)}) == 100


def settings(study: Trained, session: str = "s") -> Sweep:
    return Sweep(study.store.root, session, threads=1, use_gpu=False, code_version=None)


def test_nothing_starts_where_one_pack_has_no_room(tmp_path):
    """Without Ray, so a start would be an error of another kind."""
    study = prepared(tmp_path / "toy", **SMALL)
    jobs = all_jobs(study.grid, study.specs)
    packs = [Pack(0, (study.specs[0].run_key,), 1, 1.0), Pack(1, (study.specs[1].run_key,), 99, 1.0)]
    with pytest.raises(NoRoomError, match="99 workers"):
        train_packs(packs, jobs, settings(study), Machine(2, 0))
    assert not (tmp_path / "toy/.ray").exists()


def test_results_are_those_that_are_committed(tmp_path):
    study = prepared(tmp_path / "toy", **SMALL)
    first, second = (spec.run_key for spec in study.specs)
    for key in (first, second):
        study.store.run(key).finish({"status": "done", "steps": 1}, None)
    study.store.files.write(result_path(study.store, second), b'{"status": ')
    assert results_of(study.store, [first, second, "absent"]) == {first: {"status": "done", "steps": 1}}


REMOTE = """ray::RayTrainWorker.run (pid=1)
  File "worker.py", line 3, in from_json
TypeError: Counts.__init__() got an unexpected keyword argument 'unknown'
"""


def test_what_ended_a_pack_is_said_in_one_line():
    from ray.train import ControllerError, WorkerGroupError  # Ray reads its environment on import

    several: dict[int, Exception] = {3: ValueError("later"), 1: ValueError("first")}
    for error, words in (
        (WorkerGroupError("...", {0: RuntimeError(REMOTE)}), "WorkerGroupError: TypeError: Counts.__init__() got"),
        (WorkerGroupError("...", several), "WorkerGroupError: first"),
        (ControllerError(OSError(28, "No space left")), "ControllerError: [Errno 28] No space left"),
        (MemoryError(), "MemoryError: MemoryError"),
    ):
        assert words_of(error).startswith(words)
        assert "\n" not in words_of(error)


def test_a_pack_that_fails_is_a_result_of_its_trial(tmp_path, monkeypatch):
    from ray.train import WorkerGroupError

    study = prepared(tmp_path / "toy", **SMALL)
    made: list[dict[str, Any]] = []

    class Failing:
        def __init__(self, function: Any, **options: Any) -> None:
            made.append(options)

        def fit(self) -> None:
            raise WorkerGroupError("...", {0: RuntimeError("no CUDA here")})

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Failing)
    monkeypatch.setattr("ray.train.v2.api.data_parallel_trainer.DataParallelTrainer", Failing)
    jobs = [job.to_json() for job in all_jobs(study.grid, study.specs).values()]
    pack = {"index": 3, "cpus": 1, "jobs": jobs, "max_failures": 5, **asdict(settings(study))}
    for workers in (2, 1):
        assert drive_pack({"pack": {**pack, "workers": workers}}) == {"pack_error": "WorkerGroupError: no CUDA here"}
    first, second = made
    assert [options["scaling_config"].num_workers for options in made] == [2, 1]
    assert "torch_config" in first
    assert "torch_config" not in second
    assert first["train_loop_config"]["jobs"] == jobs
    # Train silently resumes what it finds under an old name
    assert first["run_config"].name != second["run_config"].name
    assert first["run_config"].storage_path == f"{study.store.root}/.ray"
    assert first["run_config"].failure_config.max_failures == 5
