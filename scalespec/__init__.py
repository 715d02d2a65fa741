"""Plan, run and read neural scaling-law studies. `import scalespec as ss` is the public door; nothing else is stable.

Reading:   `load(folder)` → tables and laws of a study · `fit(table, …)` → a law · `spectra(checkpoint)` → a table
Running:   `Study.load(file).plan()`, `.run(storage)`
A task:    `Task Dataset DataConfig Losses identity`, `key Dropout Eval Measured media`, and `train(study, folder)` → one run in this process, `local_run`

What a name needs is imported when the name is first used: reading loads neither torch nor Ray nor MLflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalespec.analysis.fitted import FittedLaw as Law
    from scalespec.analysis.results import Results, load
    from scalespec.orchestrator.errors import InputError
    from scalespec.orchestrator.fit.frame import fit
    from scalespec.orchestrator.notebook import Study, spectra, train
    from scalespec.trainables import media
    from scalespec.trainables.checkpoints import local_run
    from scalespec.trainables.data import identity
    from scalespec.trainables.evals.seam import Eval, Measured
    from scalespec.trainables.keys import key
    from scalespec.trainables.rules.dropout import Dropout
    from scalespec.trainables.spec import DataConfig
    from scalespec.trainables.task import Dataset, Losses, Task

    __version__: str

__all__ = [
    "DataConfig",
    "Dataset",
    "Dropout",
    "Eval",
    "InputError",
    "Law",
    "Losses",
    "Measured",
    "Results",
    "Study",
    "Task",
    "__version__",
    "fit",
    "identity",
    "key",
    "load",
    "local_run",
    "media",
    "spectra",
    "train",
]

_HOME = {
    "DataConfig": "trainables.spec:DataConfig",
    "Dataset": "trainables.task:Dataset",
    "Dropout": "trainables.rules.dropout:Dropout",
    "Eval": "trainables.evals.seam:Eval",
    "InputError": "orchestrator.errors:InputError",
    "Law": "analysis.fitted:FittedLaw",
    "Losses": "trainables.task:Losses",
    "Measured": "trainables.evals.seam:Measured",
    "Results": "analysis.results:Results",
    "Study": "orchestrator.notebook:Study",
    "Task": "trainables.task:Task",
    "fit": "orchestrator.fit.frame:fit",
    "identity": "trainables.data:identity",
    "key": "trainables.keys:key",
    "load": "analysis.results:load",
    "local_run": "trainables.checkpoints:local_run",
    "media": "trainables:media",
    "spectra": "orchestrator.notebook:spectra",
    "train": "orchestrator.notebook:train",
}
"""Public name → where it is, below this package."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            found: Any = version("scalespec")
        except PackageNotFoundError:  # from a source tree that was never installed
            found = "unknown"
    elif name in _HOME:
        module, _, attribute = _HOME[name].partition(":")
        found = getattr(importlib.import_module(f"scalespec.{module}"), attribute, None)
        if found is None:  # a module, which is an attribute of its package once it is imported
            found = importlib.import_module(f"scalespec.{module}.{attribute}")
    else:
        raise AttributeError(f"module 'scalespec' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = found  # the next time it is found without coming here
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
