"""A study as stages: each is asked for when what it reads is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalespec.analysis.readings import READINGS, ReadingError, ReadingValue
from scalespec.orchestrator.design import grid
from scalespec.orchestrator.design.ask import Ask, DesignError, Seen, fingerprint
from scalespec.orchestrator.design.tune import Cell, Tuning
from scalespec.orchestrator.study.stages import Reading, Stage, definition
from scalespec.orchestrator.study.study import Study, stage_study
from scalespec.trainables.spec import RunSpec

Expand = Callable[[Study], Sequence[RunSpec]]
"""A study of one grid → its runs. A design is asked after every finished run: one that takes long keeps what it gave."""


@dataclass
class Stages:
    """The design of every study: a plain grid is one stage of its own.

    A stage decides from finished runs alone. A diverged run is a result; a failed one stops what rests on it.
    """

    study: Study
    expand: Expand

    def ask(self, seen: Seen, running: Collection[str] = (), budget: float | None = None) -> Ask:
        """The first ask of any stage that has one. Stages that rest on nothing unfinished are asked for side by side."""
        done: dict[str, bool] = {}
        waiting: list[str] = []
        left: list[RunSpec] = []
        for stage in self.study.stages:
            missing = sorted({read.of for read in stage.readings if not done[read.of]})
            if missing:
                done[stage.name] = False
                waiting.append(f"{stage.name} waits for {', '.join(missing)}")
                continue
            found = self._of(stage, seen)
            if found.points:
                return found
            done[stage.name] = found.done
            left += found.left
            if not found.done or found.why:
                waiting.append(found.why)
        return Ask(done=all(done.values()), why="; ".join(waiting), left=tuple(left))

    def dependents(self, name: str) -> list[str]:
        """The stages that read a stage, directly or through others."""
        out: list[str] = []
        for stage in self.study.stages:
            if any(read.of == name or read.of in out for read in stage.readings):
                out.append(stage.name)
        return out

    def known(self) -> tuple[list[RunSpec], int]:
        """The runs that are certain before anything has run, and a bound of how many may follow."""
        certain: list[RunSpec] = []
        further = 0
        for stage in self.study.stages:
            # what is read later stands as the study writes it: only sizes and counts of runs are asked here
            plain = stage_study(self.study, replace(stage, readings=()), {})
            tuning = self._tuning(stage, plain, ())
            if tuning is not None:
                first = [
                    s
                    for cell in tuning.cells
                    for i in range(tuning.count)
                    for s in tuning.points(cell, [tuning.rate(i)])
                ]
                further += tuning.most() + (len(first) if stage.readings else 0)
                certain += [] if stage.readings else first
            elif stage.readings:
                further += len(self.expand(plain))
            else:
                certain += self.expand(plain)
        return list({spec.run_key: spec for spec in certain}.values()), further

    def _of(self, stage: Stage, seen: Seen) -> Ask:
        values, marks = {}, []
        for read in stage.readings:
            found = self._read(stage.name, read, seen)
            if found is None:
                return Ask(why=f"{stage.name} waits for the tables of {read.of}", stage=stage.name)
            values[read.key] = found
            marks.append([read.key, found.value, fingerprint(seen, _last(seen, read.of))])
        plain = stage_study(self.study, stage, values)
        basis = (definition(stage), marks)
        tuning = self._tuning(stage, plain, basis)
        ask = tuning.ask(seen) if tuning else grid.ask(stage.name, stage.role, self.expand(plain), basis, seen)
        if ask.points and values:
            return _with_reads(ask, values, [s.run_key for read in stage.readings for s in _last(seen, read.of)])
        return ask

    def _read(self, name: str, read: Reading, seen: Seen) -> ReadingValue | None:
        points, reading = _last(seen, read.of), READINGS[read.reading]
        if failed := seen.failed(points):
            raise DesignError(
                f"stage {name} reads {read.reading} of {read.of}, of which {len(failed)} runs failed ({failed[0]}); "
                "see their reasons with scalespec status, mend the cause and run again"
            )
        frames = seen.tables(points, reading.needs)
        if frames is None:
            return None
        try:
            return reading.function(frames).times(read.times)
        except ReadingError as error:
            raise DesignError(f"stage {name} reads {read.reading} of {read.of}: {error}") from error

    def _tuning(self, stage: Stage, plain: Study, basis: tuple[Any, ...]) -> Tuning | None:
        if stage.tune is None:
            return None
        tune = stage.tune
        axes = [axis for axis in plain.grid if axis not in ("seed", "data_fraction", tune.key)]
        cells: dict[Cell, list[RunSpec]] = {}
        for spec in self.expand(plain):
            cells.setdefault(tuple(_axis_value(spec, axis) for axis in axes), []).append(spec)

        def points(cell: Cell, rates: Sequence[float]) -> Sequence[RunSpec]:
            where: dict[str, Any] = {axis: [value] for axis, value in zip(axes, cell, strict=True)}
            probes = {**where, "data_fraction": tune.data_fraction, "seed": tune.seed, tune.key: list(rates)}
            return self.expand(replace(plain, grid=probes))

        def final(winners: Mapping[Cell, float]) -> Sequence[RunSpec]:
            rest = {axis: values for axis, values in plain.grid.items() if axis in ("seed", "data_fraction")}
            out: list[RunSpec] = []
            for cell, rate in winners.items():
                where = {axis: [value] for axis, value in zip(axes, cell, strict=True)}
                chosen = replace(plain.with_value(tune.key, rate), grid={**where, **rest})
                out += self.expand(chosen)
            return out

        start = float(plain.value_of(tune.key))
        return Tuning(
            stage.name, stage.role, start, tune.factor, tune.count, tune.rounds, tuple(cells), points, final, basis
        )


def _last(seen: Seen, name: str) -> tuple[RunSpec, ...]:
    """The runs of a stage's last ask: of a bracket the winner's."""
    asks = seen.of(name)
    return asks[max(asks)].points if asks else ()


def _axis_value(spec: RunSpec, axis: str) -> Any:
    return spec.width if axis == "width" else spec.axes[axis]


def _with_reads(ask: Ask, values: Mapping[str, ReadingValue], seen: Sequence[str]) -> Ask:
    keys = tuple(dict.fromkeys([*ask.seen, *seen]))
    return replace(ask, read={key: value.value for key, value in values.items()}, seen=keys)
