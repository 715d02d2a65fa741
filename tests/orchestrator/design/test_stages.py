"""Studies in stages in a world without training: what they ask for, when, and that a killed one asks the same again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.ask import DesignError, Seen
from scalespec.orchestrator.design.stages import Stages
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.study.expand import Expander
from scalespec.orchestrator.study.file import parse_study
from scalespec.orchestrator.study.study import Study
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import RunSpec
from studies import TOY

World = Callable[[RunSpec], Mapping[str, Any]]

BASE = {key: value for key, value in TOY.items() if key != "grid"}
GRID = {"width": [8, 16], "seed": [0, 1]}
STAGED = [
    {"name": "ramp", "grid": {"width": [8]}, "schedule": {"name": "ramp"}, "optim": {"lr": 1.0}},
    {"name": "small", "role": "result", "grid": GRID, "optim": {"lr": {"reading": "onset_lr", "of": "ramp", "times": 0.5}}},
    {"name": "large", "grid": GRID, "optim": {"lr": {"reading": "lr", "of": "small"}, "batch_size": 64}},
]  # fmt: skip
TUNED = [
    {
        "name": "rates",
        "tune": {"key": "optim.lr", "factor": 2, "count": 3, "rounds": 4, "seed": [7, 8]},
        "grid": {**GRID, "data_fraction": [1, "1/2"]},
    }
]


def study(**more: Any) -> Study:
    return parse_study(json.dumps({**BASE, **more}), "study.yaml")


def loss(best: float) -> World:
    """The loss is a parabola in log lr around `best`, and a trace of the seed."""

    def result(spec: RunSpec) -> Mapping[str, Any]:
        value = 2 + math.log(spec.optim.lr / best) ** 2 + 1e-3 * spec.seed
        return {"status": "done", "steps": 100, "val_loss": value, "val_loss_select": value, "session": "s"}

    return result


def frames(points: Any, needs: Any, results: Mapping[str, Mapping[str, Any]], onset: float = 0.2) -> dict[str, Any]:
    """Tables as a ramp whose loss leaves its best at `onset`, and rates as the rules make them, would give."""
    runs = pd.DataFrame(
        {
            "run_key": spec.run_key,
            "status": results[spec.run_key]["status"],
            "lr": scaled_optim(spec.optim).lr,
            "width": spec.width,
            "reference_width": spec.optim.reference.width,
            "batch_size": spec.optim.batch_size,
            "schedule": spec.schedule.name,
        }
        for spec in points
    )
    rows = []
    for spec in points:
        for step in range(1, 101):
            rate = spec.optim.lr * step / 100
            value = 3 - rate if rate <= onset else 3 - onset + 5 * (rate - onset)
            rows += [(spec.run_key, step, "lr", rate), (spec.run_key, step, "train_loss_ema", value)]
    curves = pd.DataFrame(rows, columns=["run_key", "step", "metric", "value"])
    return {"runs": runs, "curves": curves}


class Driver:
    """The loop of a study without lanes: what is asked for has its result at once, or later, or in a later life."""

    def __init__(self, root: Any, whole: Study, world: World) -> None:
        self.store, self.study, self.world = StudyStore(str(root)), whole, world
        self.results: dict[str, Mapping[str, Any]] = {}
        self.begin()

    def begin(self) -> None:
        """A driver that knows only what is on disk."""
        self.design = Stages(self.study, EXPANDER)
        names = [stage.name for stage in self.study.stages]
        self.asks = log.retire(self.store, log.read(self.store), names)

    def ask(self) -> Any:
        seen = Seen(log.in_force(self.asks), self.results, lambda points, needs: frames(points, needs, self.results))
        ask = self.design.ask(seen)
        if ask.points:
            self.asks.append(log.commit(self.store, ask, self.asks, self.design.dependents(ask.stage)))
        return ask

    def finish(self, count: int | None = None, rng: random.Random | None = None) -> None:
        """Gives results to `count` runs that lack one, in any order."""
        left = [spec for spec in log.specs(self.asks) if spec.run_key not in self.results]
        if rng is not None:
            rng.shuffle(left)
        self.results |= {spec.run_key: self.world(spec) for spec in left[:count]}

    def run(self) -> Driver:
        for _ in range(50):
            ask = self.ask()
            if ask.done:
                return self
            if not ask.points:
                self.finish()
        raise AssertionError("it never ends")

    def in_force(self) -> list[tuple[Any, ...]]:
        found = log.in_force(log.read(self.store))
        return sorted((a.stage, a.round, a.role, a.digest, tuple(sorted(s.run_key for s in a.points))) for a in found)


EXPANDER = Expander()


def test_a_grid_asks_once(tmp_path):
    driver = Driver(tmp_path, study(grid=GRID), loss(0.01))
    ask = driver.ask()
    assert (len(ask.points), ask.stage, ask.role) == (4, "grid", "result")
    waiting = driver.ask()
    assert not waiting.points
    assert not waiting.done
    assert waiting.why == "grid: 4 runs left"
    driver.finish()
    assert driver.ask().done
    assert len(log.read(driver.store)) == 1


def test_a_grown_grid_is_a_new_ask_that_supersedes_the_old_one(tmp_path):
    driver = Driver(tmp_path, study(grid=GRID), loss(0.01)).run()
    driver.study = study(grid={**GRID, "width": [8, 16, 32]})
    driver.begin()
    driver.run()
    first, second = log.read(driver.store)
    assert second.supersedes == (first.number,)
    assert len(log.specs(driver.asks)) == 6
    # and back again: the tables hold what is asked for, the runs are there already
    driver.study = study(grid=GRID)
    driver.begin()
    driver.run()
    assert len(log.specs(driver.asks)) == 4


def test_a_stage_is_asked_for_when_what_it_reads_is_there(tmp_path):
    driver = Driver(tmp_path, study(design=STAGED), loss(0.01))
    assert driver.ask().stage == "ramp"
    assert "small waits for ramp" in driver.ask().why
    driver.finish()
    small = driver.ask()
    assert small.stage == "small"
    assert dict(small.read) == {"optim.lr": 0.1}, "half of the onset at .2, three digits"
    assert {spec.optim.lr for spec in small.points} == {0.1}
    driver.finish()
    large = driver.ask()
    assert {spec.optim.reference.batch_size for spec in large.points} == {16}, "from where the rate was read"
    assert {scaled_optim(spec.optim).lr for spec in large.points} == {0.1 * 2}, "√(64 / 16)"
    assert set(large.seen) >= {spec.run_key for spec in small.points}
    driver.finish()
    assert driver.ask().done


@pytest.mark.parametrize("read", ["optim.batch_size", "optim.lr", "schedule.cooldown"])
def test_before_anything_has_run_the_rest_is_bounded_whatever_it_reads(read):
    section, _, leaf = read.partition(".")
    later = {"name": "later", "grid": GRID, section: {leaf: {"reading": "lr", "of": "first"}}}
    certain, further = Stages(study(design=[{"name": "first", "grid": {"width": [8]}}, later]), EXPANDER).known()
    assert (len(certain), further) == (1, 4)


def test_stages_that_rest_on_nothing_are_asked_for_side_by_side(tmp_path):
    apart = [{"name": "a", "grid": {"width": [8]}}, {"name": "b", "grid": {"width": [16]}}]
    driver = Driver(tmp_path, study(design=apart), loss(0.01))
    assert [driver.ask().stage, driver.ask().stage] == ["a", "b"]


def test_a_bracket_walks_until_the_best_is_inside(tmp_path):
    driver = Driver(tmp_path, study(design=TUNED), loss(0.01 * 2**4)).run()
    rounds = {ask.round: ask for ask in log.in_force(driver.asks)}
    tried = sorted({spec.optim.lr for ask in rounds.values() if ask.role == "probe" for spec in ask.points})
    assert tried == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
    final = rounds[max(rounds)]
    assert final.role == "result"
    assert {spec.optim.lr for spec in final.points} == {0.16}
    assert {spec.seed for spec in final.points} == {0, 1}, "not those of the probes"
    assert len(final.points) == 8
    assert "2 of 2 brackets lies inside" in final.why


def test_a_bracket_that_never_closes_says_so(tmp_path):
    driver = Driver(tmp_path, study(design=TUNED), loss(1e9)).run()
    final = log.in_force(driver.asks)[-1]
    assert "minimum_outside: 8, 16" in final.why
    probes = {spec.run_key for ask in driver.asks if ask.role == "probe" for spec in ask.points}
    assert len(probes) == 2 * 2 * (3 + 3 * 2), "cells × seeds × rates of four rounds"
    _, further = Stages(driver.study, EXPANDER).known()
    assert len(log.specs(driver.asks)) - 2 * 2 * 3 <= further


def test_what_diverges_is_worse_than_anything(tmp_path):
    def cliff(spec: RunSpec) -> Mapping[str, Any]:
        if spec.optim.lr > 0.004:
            return {"status": "diverged", "steps": 3, "val_loss": None, "val_loss_select": None, "session": "s"}
        return loss(0.1)(spec)

    driver = Driver(tmp_path, study(design=TUNED), cliff).run()
    assert {spec.optim.lr for spec in log.in_force(driver.asks)[-1].points} == {0.0025}


def test_a_failed_run_stops_what_rests_on_it(tmp_path):
    def broken(spec: RunSpec) -> Mapping[str, Any]:
        return {**loss(0.01)(spec), "status": "failed" if spec.schedule.name == "ramp" else "done"}

    driver = Driver(tmp_path, study(design=STAGED), broken)
    driver.ask()
    driver.finish()
    with pytest.raises(DesignError, match="stage small reads onset_lr of ramp, of which 1 runs failed"):
        driver.ask()
    tuned = Driver(tmp_path / "tuned", study(design=TUNED), lambda spec: {**loss(1)(spec), "status": "failed"})
    tuned.ask()
    tuned.finish()
    stopped = tuned.ask()
    assert stopped.done
    assert "stopped, 12 of its probes failed" in stopped.why


def test_a_run_trained_anew_supersedes_what_was_decided_from_it(tmp_path):
    driver = Driver(tmp_path, study(design=STAGED), loss(0.01)).run()
    before = driver.in_force()
    (ramp,) = next(ask for ask in driver.asks if ask.stage == "ramp").points
    driver.results[ramp.run_key] = {**driver.results[ramp.run_key], "val_loss": 7.0}
    driver.run()
    after = driver.in_force()
    assert [ask[:3] for ask in after] == [ask[:3] for ask in before]
    changed = {ask[0] for ask, other in zip(after, before, strict=True) if ask[3] != other[3]}
    assert changed == {"small"}, "what read the ramp; its runs are the same, so what reads them stands as it was"
    assert len(log.read(driver.store)) == 5


def test_a_stage_that_is_gone_takes_its_runs_with_it(tmp_path):
    driver = Driver(tmp_path, study(design=STAGED), loss(0.01)).run()
    driver.study = study(design=STAGED[:2])
    driver.begin()
    driver.run()
    assert {ask.stage for ask in log.in_force(driver.asks) if ask.points} == {"ramp", "small"}


@pytest.mark.parametrize("design", [STAGED, TUNED, [*STAGED[:1], *TUNED]])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_study_killed_at_random_asks_the_same(tmp_path_factory, design, seed):
    rng, whole = random.Random(seed), study(design=design)
    straight = Driver(tmp_path_factory.mktemp("straight"), whole, loss(0.03)).run()
    killed = Driver(tmp_path_factory.mktemp("killed"), whole, loss(0.03))
    for _ in range(300):
        event = rng.choice(["ask", "ask", "finish", "kill"])
        if event == "kill":
            killed.begin()
        elif event == "finish":
            killed.finish(rng.randint(1, 3), rng)
        elif killed.ask().done:
            break
    killed.run()
    assert killed.in_force() == straight.in_force()
    assert log.roles(killed.asks) == log.roles(straight.asks)


def test_a_committed_ask_reads_back_as_it_was(tmp_path):
    driver = Driver(tmp_path, study(design=STAGED), loss(0.01)).run()
    assert log.read(driver.store) == driver.asks
    table = log.table(driver.asks).to_pylist()
    assert {(row["stage"], row["role"]) for row in table} == {
        ("ramp", "probe"),
        ("small", "result"),
        ("large", "result"),
    }
    # what is no ask is passed over
    driver.store.files.write("asks/000009.json", b"{}")
    driver.store.files.write("asks/notes.txt", b"x")
    assert log.read(driver.store) == driver.asks


def test_a_run_that_any_stage_wants_as_a_result_is_one(tmp_path):
    twice = [{"name": "a", "role": "probe", "grid": {"width": [8]}}, {"name": "b", "grid": {"width": [8, 16]}}]
    driver = Driver(tmp_path, study(design=twice), loss(0.01)).run()
    assert set(log.roles(driver.asks).values()) == {"result"}
    assert len(log.specs(driver.asks)) == 2
    assert log.table(driver.asks).num_rows == 3
