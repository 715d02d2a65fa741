"""Scaling laws that say when not to believe them.

`study_laws` reads a study, the `fit_*` functions anyone's columns; every fit is a `Law` with intervals and statuses, and
`verdict` puts it into words. What else there is has a module of its own name.
"""

from scalespec.analysis.laws.backtest import Backtest, Table, backtest, backtests, rolling_origin
from scalespec.analysis.laws.conventions import sensitivity
from scalespec.analysis.laws.data_constrained import data_constrained_loss, fit_data_constrained
from scalespec.analysis.laws.effective_params import effective_params
from scalespec.analysis.laws.frontier import fit_frontier
from scalespec.analysis.laws.isoflop import fit_isoflop
from scalespec.analysis.laws.kaplan import fit_kaplan, kaplan_loss
from scalespec.analysis.laws.law import Evidence, Exclusion, FitStatus, Law, Param
from scalespec.analysis.laws.learning_rate import fit_learning_rate
from scalespec.analysis.laws.parametric import chinchilla_loss, fit_chinchilla, optimum, predict
from scalespec.analysis.laws.power import fit_overtrained, fit_power, overtrained_loss, power_loss
from scalespec.analysis.laws.study import as_runs, study_laws
from scalespec.analysis.laws.verdict import verdict

__all__ = [
    "Backtest",
    "Evidence",
    "Exclusion",
    "FitStatus",
    "Law",
    "Param",
    "Table",
    "as_runs",
    "backtest",
    "backtests",
    "chinchilla_loss",
    "data_constrained_loss",
    "effective_params",
    "fit_chinchilla",
    "fit_data_constrained",
    "fit_frontier",
    "fit_isoflop",
    "fit_kaplan",
    "fit_learning_rate",
    "fit_overtrained",
    "fit_power",
    "kaplan_loss",
    "optimum",
    "overtrained_loss",
    "power_loss",
    "predict",
    "rolling_origin",
    "sensitivity",
    "study_laws",
    "verdict",
]
