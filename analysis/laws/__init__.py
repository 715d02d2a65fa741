"""Scaling laws that say when not to believe them.

`study_laws` reads a study, the `fit_*` functions anyone's columns; every fit is a `Law` with intervals and statuses, and
`verdict` puts it into words. What else there is has a module of its own name.
"""

from analysis.laws.backtest import Backtest, Table, backtest, backtests, rolling_origin
from analysis.laws.conventions import sensitivity
from analysis.laws.data_constrained import data_constrained_loss, fit_data_constrained
from analysis.laws.effective_params import effective_params
from analysis.laws.frontier import fit_frontier
from analysis.laws.isoflop import fit_isoflop
from analysis.laws.kaplan import fit_kaplan, kaplan_loss
from analysis.laws.law import Evidence, Exclusion, FitStatus, Law, Param
from analysis.laws.learning_rate import fit_learning_rate
from analysis.laws.parametric import chinchilla_loss, fit_chinchilla, optimum, predict
from analysis.laws.power import fit_overtrained, fit_power, overtrained_loss, power_loss
from analysis.laws.study import as_runs, study_laws
from analysis.laws.verdict import verdict

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
