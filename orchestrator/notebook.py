"""Studies, single runs and spectra from a notebook or a script of one's own: the part of `import scalespec` that is not analysis.

It is thin: what it does is what the verbs do. Ray and MLflow are loaded by `Study.run` and `Study.plan` alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scalespec.analysis import tables
from scalespec.analysis.results import Results, load
from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.study import file
from scalespec.orchestrator.study.numbers import fraction

if TYPE_CHECKING:
    from scalespec.orchestrator.study.plan import Plan
    from scalespec.trainables.spec import RunSpec


@dataclass(frozen=True)
class Study:
    """A study file, checked, with its overrides applied."""

    path: str
    overrides: tuple[str, ...]
    """`key=value` each, as after `--set`."""
    spec: file.Study = field(repr=False)
    """What it says, defaults filled in."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], *overrides: str) -> Study:
        """Reads and checks `path`; an override is `key=value`, as `grid.seed=[0]`. Raises InputError naming file, line and key."""
        return cls(str(Path(path).absolute()), overrides, file.load_study(path, overrides))

    @property
    def name(self) -> str:
        return self.spec.name

    def plan(self, storage: str | None = None) -> Plan:
        """What `run` would do, from a short probe on this machine: `.runs`, `.seconds`, `.flops_train` …; writes nothing.

        `.runs` has the runs that have no result yet; of a study in stages those that are certain, `.further_runs` bounds the rest.
        """
        from scalespec.orchestrator.planning import plan_study
        from scalespec.orchestrator.study import own_task

        own_task.admit(self.path, self.spec.task["name"])
        return plan_study(self.spec, storage).plan

    def run(self, storage: str | None = None, *, address: str | None = None) -> Results:
        """The whole study to its report, on a private local Ray or that at `address`; what is finished is not done again.

        `storage`: a folder or URI that every node sees (default: the study's). Runs that diverged or failed are rows of
        `.runs` with their reason. Raises InputError before anything is written, for whatever can be mended.
        """
        from scalespec.orchestrator.run import run_study

        outcome = run_study(self.path, storage=storage, overrides=self.overrides, address=address)
        return load(outcome.store.root)


def train(
    study: Study | str | os.PathLike[str], folder: str | os.PathLike[str], index: int = 0, **where: Any
) -> Mapping[str, Any]:
    """Trains one run of a study in this process, without Ray, and returns its result: `status`, `val_loss` …

    `where` narrows the runs by axis (`width=16, data_fraction="1/2", seed=0`, further axes by their last part); `index` picks
    one of the rest, in the order of the grid. The folder gets what a run folder of a study has; given again, a run that was cut
    off goes on and a finished one is read. Raises InputError where no run is meant or the folder holds another, and
    `trainables.loop.DivergedError` where the run has no finite result.
    """
    import torch

    from scalespec.orchestrator.study import grid, own_task
    from scalespec.trainables.checkpoints import local_run
    from scalespec.trainables.loop import Trainer

    opened = study if isinstance(study, Study) else Study.load(study)
    loaded = opened.spec
    own_task.admit(opened.path, loaded.task["name"])
    points = grid.expand(loaded, gpus=torch.cuda.is_available())
    meant = [spec for spec in points.runs if all(_is(spec, name, value) for name, value in where.items())]
    told = f"{loaded.name}{''.join(f', {name}={value!r}' for name, value in where.items())}"
    if not meant:
        raise InputError(f"train: no run of {told}; leave an axis out, or add the value to the study's grid")
    if not 0 <= index < len(meant):
        raise InputError(f"train: index {index} of {told}; it is from 0 to {len(meant) - 1}")
    spec, place = meant[index], local_run(folder)
    _keep_spec(spec, Path(folder) / "spec.json")
    result: Mapping[str, Any] = place.result() or Trainer(spec, points.of(spec), place).run()
    return result


def _keep_spec(spec: RunSpec, path: Path) -> None:
    """Writes what the folder's run is. Raises InputError where the folder holds another run."""
    try:
        held = type(spec).from_json(json.loads(path.read_text())).run_key
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(spec.to_json(), indent=1))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not the spec of a run; train into another folder") from error
    else:
        if held != spec.run_key:
            raise InputError(f"{path.parent}: holds the run {held}, not {spec.run_key}; train into another folder")


def _is(spec: RunSpec, name: str, value: Any) -> bool:
    known = {"width": spec.width, "seed": spec.seed, "data_fraction": spec.data_fraction}
    known |= {axis.rpartition(".")[2]: one for axis, one in spec.axes.items()}
    if name not in known:
        raise InputError(f"train: {name} is no axis of {spec.study}; its axes are {', '.join(known)}")
    return bool(known[name] == (fraction(value) if name == "data_fraction" else value))


def spectra(*paths: str | os.PathLike[str], profile: str = "ww-0.7.7") -> pd.DataFrame:
    """Spectral metrics of every layer of the checkpoints at `paths` (files, folders, run folders), one row a layer and step.

    Columns as in `spectra.parquet` (docs/contract.md). Raises InputError naming what cannot be read.
    """
    from scalespec.orchestrator.spectra import standalone

    rows = standalone.analyse_paths([os.fspath(path) for path in paths], profile)
    return tables.to_pandas(standalone.table(rows))
