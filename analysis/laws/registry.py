"""The forms of law, by name. A new form is its own file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalespec.analysis.laws import (
    chinchilla,
    data_constrained,
    frontier_law,
    isoflop_law,
    kaplan,
    learning_rate,
    one_exponent,
    power,
)
from scalespec.analysis.laws.fitting import fit
from scalespec.analysis.laws.form import Form
from scalespec.analysis.laws.law import Law

AUTO = "auto"
"""The form that is chosen for you: the first of the list, the law that everyone compares with."""

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        chinchilla.FORM,
        one_exponent.FORM,
        kaplan.FORM,
        power.FORM,
        data_constrained.FORM,
        isoflop_law.FORM,
        frontier_law.FORM,
        frontier_law.SIZE,
        learning_rate.FORM,
    )
}


def form_of(name: str) -> Form:
    """The form of that name, `-` and `_` alike; `auto` is the first. Raises ValueError naming those that can be fitted."""
    known = name.replace("-", "_")
    if known == AUTO:
        return next(iter(FORMS.values()))
    if known not in FORMS:
        raise ValueError(f"{name}: not one of {', '.join(fittable())}")
    return FORMS[known]


def form_of_law(law: Law) -> Form:
    """The form of a law; of one that is not in the list, a record that knows its name alone."""
    return FORMS.get(law.form) or Form(law.form, "", "", "", (), {}, tuple(law.params), picture=None)


def fittable() -> list[str]:
    """Names of the forms that anyone's table can be fitted with, in the order of the list."""
    return [name for name, form in FORMS.items() if form.fittable]


def fit_form(form: Form, variables: Mapping[str, Any], loss: Any, **options: Any) -> Law:
    """Fits a form to its variables (name → [points]) and `loss` [points]; `options` are those of `fitting.fit`.

    Variables that the form does not read are ignored. Raises ValueError naming one that it needs, and on values that are not
    positive numbers; a bad fit is a status.
    """
    given = [name for name in form.variables if name in variables]
    if form.one_variable and len(given) != 1:
        raise ValueError(f"{form.name}: needs one of {', '.join(form.variables)}, its only variable")
    if not form.one_variable and len(given) < len(form.variables):
        raise ValueError(f"{form.name}: needs {', '.join(name for name in form.variables if name not in given)}")
    if form.fit is not None:
        return form.fit(variables, loss, **options)
    return fit(form, {name: variables[name] for name in given}, loss, **options)
