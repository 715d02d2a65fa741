"""Scaling laws that say when not to believe them.

`study_laws` reads a study, the `fit_*` functions anyone's columns; every fit is a `Law` with intervals and statuses, and
`verdict` puts it into words. `FORMS` are the forms of law, one record each; what else there is has a module of its own name.
"""

from scalespec.analysis.laws.backtest import Backtest, Table, backtest, backtests, rolling_origin
from scalespec.analysis.laws.chinchilla import chinchilla_loss, fit_chinchilla
from scalespec.analysis.laws.conventions import sensitivity
from scalespec.analysis.laws.data_constrained import data_constrained_loss, fit_data_constrained
from scalespec.analysis.laws.effective_params import effective_params
from scalespec.analysis.laws.form import Form
from scalespec.analysis.laws.frontier_law import fit_frontier
from scalespec.analysis.laws.isoflop_law import fit_isoflop
from scalespec.analysis.laws.kaplan import fit_kaplan, kaplan_loss
from scalespec.analysis.laws.law import Evidence, Exclusion, FitStatus, Law, Param
from scalespec.analysis.laws.learning_rate import fit_learning_rate
from scalespec.analysis.laws.one_exponent import fit_one_exponent, one_exponent_loss
from scalespec.analysis.laws.optimum import optimum, predict
from scalespec.analysis.laws.power import fit_power, power_loss
from scalespec.analysis.laws.registry import FORMS, fit_form, form_of
from scalespec.analysis.laws.study import as_runs, study_laws
from scalespec.analysis.laws.verdict import verdict

__all__ = [
    "FORMS",
    "Backtest",
    "Evidence",
    "Exclusion",
    "FitStatus",
    "Form",
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
    "fit_form",
    "fit_frontier",
    "fit_isoflop",
    "fit_kaplan",
    "fit_learning_rate",
    "fit_one_exponent",
    "fit_power",
    "form_of",
    "kaplan_loss",
    "one_exponent_loss",
    "optimum",
    "power_loss",
    "predict",
    "rolling_origin",
    "sensitivity",
    "study_laws",
    "verdict",
]
