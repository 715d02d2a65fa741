"""Scaling laws that say when not to believe them."""

from analysis.laws.frontier import fit_frontier
from analysis.laws.law import Evidence, Exclusion, FitStatus, Law, Param
from analysis.laws.parametric import chinchilla_loss, fit_chinchilla, optimum, predict
from analysis.laws.power import fit_overtrained, fit_power, overtrained_loss, power_loss
from analysis.laws.study import study_laws
from analysis.laws.verdict import verdict

__all__ = [
    "Evidence",
    "Exclusion",
    "FitStatus",
    "Law",
    "Param",
    "chinchilla_loss",
    "fit_chinchilla",
    "fit_frontier",
    "fit_overtrained",
    "fit_power",
    "optimum",
    "overtrained_loss",
    "power_loss",
    "predict",
    "study_laws",
    "verdict",
]
