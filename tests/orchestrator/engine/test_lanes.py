"""Lanes on Ray: worker groups of both sizes, what becomes of them when they die, and what is refused before they start."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trained import Trained, prepared

from scalespec.orchestrator.engine.board import wanted
from scalespec.orchestrator.engine.jobs import with_jobs
from scalespec.orchestrator.engine.lanes import (
    CodeDiffersError,
    Lanes,
    NoRoomError,
    Settings,
    check_room,
)
from scalespec.orchestrator.engine.probe import with_room_for_spectra
from scalespec.orchestrator.engine.queue import News
from scalespec.orchestrator.engine.wishes import is_local, words_of
from scalespec.orchestrator.store import watch
from scalespec.orchestrator.study import plan
from scalespec.orchestrator.study.resources import Machine
from scalespec.orchestrator.study.units import Unit
from scalespec.orchestrator.version import fingerprint
from studies import toy

SMALL: dict[str, Any] = {"grid": {"width": [8, 16, 24], "data_fraction": ["1", "1/2"]}, "data": {"limit": 512}}


# -- without Ray ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("workers", "use_gpu", "local"), [(1, False, True), (2, False, False), (1, True, False), (4, True, False)]
)
def test_one_worker_on_a_cpu_is_the_trial_itself_and_others_take_no_cpu_of_their_own(workers, use_gpu, local):
    from scalespec.orchestrator.engine.tuning import resources

    config = {"workers": workers, "use_gpu": use_gpu, "cpus": 3}
    assert is_local(config) is local
    (asked,) = resources(config).bundles
    assert asked == ({"CPU": 3} if local else {"node:__internal_head__": 0.001})


RAISED = """\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, repr=drive_lane)
  File "worker.py", line 3, in from_json
    counts = flops.Counts(**data["counts"])
                            ~~~~^^^^^^^^^^
KeyError: 'counts'
"""
KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End of file. \
Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) a bug.
"""
GROUP = f"""ray.train.WorkerGroupError: Training failed due to worker errors:
[Rank 0 Error Snippet]:
{RAISED}
[Rank 1 Error Snippet]:
RuntimeError: Connection closed by peer
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RAISED, "KeyError: 'counts'"),
        (GROUP, "KeyError: 'counts'"),
        (GROUP.replace("Rank 0", "Rank 0,1").partition("[Rank 1 ")[0], "KeyError: 'counts'"),
        ("OSError: [Errno 28] No space left", "OSError: [Errno 28] No space left"),
        ("", "its process died"),
    ],
)
def test_what_ended_a_lane_is_said_in_one_line(text, words):
    assert words_of(text) == words


def test_a_killed_process_is_said_without_guesses_at_the_cause():
    assert words_of(KILLED).endswith("Worker exit type: SYSTEM_ERROR Worker exit detail: End of file.")


# -- on Ray --------------------------------------------------------------------------------------------------------------


class House:
    """Lanes of a study and the driver's part: news in, lanes started and closed."""

    def __init__(self, study: Trained, machine: Machine, **settings: Any) -> None:
        self.study, self.machine = study, machine
        made = Settings(study.store.root, "session", 1, machine.gpus > 0, "test", fingerprint())
        self.lanes = Lanes(replace(made, **settings), machine)
        self.last = News((), 0, {}, {}, (), {})
        self.sizes: list[dict[int, int]] = []
        """Lanes by size, after each look."""
        self.told: Counter[str] = Counter()

    def add(self, units: list[Unit]) -> None:
        self.lanes.add(with_jobs(units, self.study.grid, self.study.specs))

    def units(self, **workers: int) -> list[Unit]:
        """Every family of the study; `w16=2` gives those of width 16 two workers."""
        runs = [replace(s, train=replace(s.train, workers=workers.get(f"w{s.width}", 1))) for s in self.study.specs]
        grid = replace(self.study.grid, runs=tuple(runs))
        self.study = replace(self.study, grid=grid)
        return plan.units_of(grid, plan.schedules(grid), runs, {spec.run_key: float(spec.width) for spec in runs})

    def look(self) -> None:
        self.last = news = self.lanes.news(1.0)
        self.told.update(what for _, _, what in news.hints)
        alive = self.lanes.alive()
        room = {size: self.machine.lanes(size) for size in {*news.work, *alive}}
        self.lanes.adjust(wanted(news.work, alive, room), news.waiting)
        self.sizes.append(self.lanes.alive())

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not done():
            assert time.monotonic() < end, (self.last, self.lanes.problems, self.sizes[-3:])
            self.look()

    def idle(self) -> bool:
        return bool(self.sizes) and not self.last.work

    def results(self) -> dict[str, Any]:
        return {
            key: dict(r) for key, r in watch.results(self.study.store, [s.run_key for s in self.study.specs]).items()
        }


@pytest.mark.ray
def test_units_of_one_and_two_workers_in_one_ask(ray_cluster, tmp_path):
    """Two CPUs have room for two lanes of one worker or for a group of two: the ones that wait give way to the other."""
    house = House(prepared(tmp_path / "toy", **SMALL), Machine(2, 0))
    try:
        house.add(house.units(w16=2))
        house.until(house.idle)
        assert {(r["status"], r["workers"]) for r in house.results().values()} == {("done", 1), ("done", 2)}
        assert len(house.results()) == 6
        assert {size for sizes in house.sizes for size in sizes} == {1, 2}
        # warm lanes: later work of a size finds its lanes, and never more of them than there is room for
        assert all(sizes.get(1, 0) <= 2 and sizes.get(2, 0) <= 1 for sizes in house.sizes)
        assert house.lanes.problems == []
    finally:
        house.lanes.finish()
    assert house.lanes.alive() == {}


@pytest.mark.ray
def test_a_lane_whose_worker_is_killed_comes_back_and_the_rest_is_done(ray_cluster, tmp_path):
    """Of four runs one kills its worker once and is resumed, one kills it every time and fails; the other two are done."""
    once, always = tmp_path / "once", tmp_path / "always"
    once.write_bytes(b"x" * 98)
    task = {"name": "toy_task:Toy", "kill_width": 8, "kill_times": 99}
    grid = {"width": [8, 16], "data_fraction": ["1"], "kill_file": [str(once), str(always)]}
    house = House(prepared(tmp_path / "toy", **{**SMALL, "grid": grid}, task=task), Machine(2, 0))
    try:
        house.add(house.units())
        house.until(house.idle)
        found, claims = {}, {}
        for spec in house.study.specs:
            name = (spec.width, Path(spec.axes["kill_file"]).name)
            found[name] = house.results()[spec.run_key]
            claims[name] = len(house.study.store.run(spec.run_key).claims())
        status = {name: result["status"] for name, result in found.items()}
        assert status == {(8, "once"): "done", (8, "always"): "failed", (16, "once"): "done", (16, "always"): "done"}
        assert found[8, "always"]["error"] == "worker_died: its worker died twice"
        assert claims == {(8, "once"): 2, (8, "always"): 3, (16, "once"): 1, (16, "always"): 1}
        assert (once.read_bytes(), always.read_bytes()) == (b"x" * 99, b"xx")
        assert house.told["result"] == 4
        assert house.lanes.problems == [], "the same lanes, started again, finish everything"
    finally:
        house.lanes.finish()


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_with_another_source_does_not_train(ray_cluster, tmp_path, workers):
    house = House(prepared(tmp_path / "toy", **SMALL), Machine(2, 0), fingerprint="another")
    try:
        house.add(house.units(w8=workers, w16=workers, w24=workers))
        with pytest.raises(
            CodeDiffersError, match=r"code_differs: node .* has another scalespec than the driver; install"
        ):
            house.until(house.idle)
        assert house.told == {}
        assert house.results() == {}
    finally:
        house.lanes.finish()
