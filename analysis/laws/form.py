"""A form of law as one record: what it reads, how it is fitted, what its parameters mean, how it is drawn and put into words.

`registry.FORMS` lists the records. Everything that treats laws alike (the command line, figures, verdict, best sizes, the report)
reads the record, so a new form is its own file and one line there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scalespec.analysis.laws.law import Array, Law, Param
from scalespec.analysis.laws.problem import Columns, Problem


@dataclass(frozen=True)
class Parameter:
    """What one parameter is."""

    symbol: str
    """As figures and sentences write it: α."""
    meaning: str
    unit: str = ""
    """`loss` is the unit of the loss that was fitted; empty: a pure number."""
    decades: bool = False
    """It spans decades between tables: its interval is widened in the logarithm."""


@dataclass(frozen=True)
class Cost:
    """What a run costs: C = k·N^s·D^t FLOP."""

    s: float = 1.0
    t: float = 1.0
    k: float = 6.0

    @classmethod
    def of(cls, law: Law) -> Cost:
        """The count that the law was fitted with; C = 6ND where it was given none."""
        d = law.diagnostics
        return cls(d.get("cost_n_exponent", 1.0), d.get("cost_d_exponent", 1.0), d.get("cost_factor", 6.0))


@dataclass(frozen=True)
class Form:
    """One form of law. What is left at its default is what most laws do."""

    name: str
    """As in `laws.json`; on the command line `-` and `_` are the same."""
    title: str
    """What it is the law of, for a heading."""
    equation: str
    source: str
    """Where it comes from."""
    variables: tuple[str, ...]
    """The variables of `loss`, in its order: of n, d, c, unique. With `one_variable` those among which one is chosen."""
    parameters: Mapping[str, Parameter]
    exponents: tuple[str, ...]
    """The parameters that people quote: their intervals decide whether the basin is flat, and who moves them is named."""
    problem: Callable[[Columns, Array], Problem] | None = None
    """Variables [points] and loss [points] → what the solver needs; None: a form with a `fit` of its own, or one that is only read."""
    fit: Callable[..., Law] | None = None
    """(variables by name, loss, options of `fitting.fit`) → law; None: `fitting.fit` of `problem`."""
    loss: Callable[..., Any] | None = None
    """(params by name, then one argument a variable) → loss; numbers or arrays that broadcast. None: not a law of the loss."""
    best: Callable[[Mapping[str, Any], Any, Cost], dict[str, Any]] | None = None
    """(params, budget in FLOP, cost) → the best `n` and `d` where there is a closed form."""
    slopes: Mapping[str, str] = field(default_factory=dict)
    """Variable → the exponent with which the loss falls in it, for forms that have one."""
    cards: tuple[str, ...] = ()
    """Parameters that a reader looks for first."""
    one_variable: bool = False
    residual: Literal["log", "loss"] = "log"
    """Whether the objective sees ln loss or the loss itself."""
    delta: float | None = None
    """Huber threshold, in units of the residual; None: the measured noise (`noise.default_delta`)."""
    huber: bool = True
    """Whether there is a Huber threshold to choose."""
    headline: Callable[[Law, str], str] | None = None
    """(law, the points in words) → the verdict's first sentence; None: the parameters one by one."""
    picture: str | None = "surface"
    """Kind of figure, a key of `analysis.plots.pictures.KINDS`; None: it has none of its own."""

    @property
    def fittable(self) -> bool:
        """Whether a table of anyone's can be fitted with it."""
        return self.problem is not None or self.fit is not None

    @property
    def of_size_and_data(self) -> bool:
        """Whether it is a law L(N, D): a surface, from which a best size for a budget follows."""
        return self.loss is not None and self.variables == ("n", "d")

    @property
    def along_compute(self) -> bool:
        """Whether it says what is best at each compute budget."""
        return "c" in self.variables and not self.one_variable

    @property
    def decades(self) -> frozenset[str]:
        """Names of the parameters that span decades."""
        return frozenset(name for name, one in self.parameters.items() if one.decades)

    def symbol(self, name: str) -> str:
        """How a parameter is written; its name where the record does not have it."""
        return self.parameters[name].symbol if name in self.parameters else name


def range_of(p: Param) -> str:
    """`0.347 (0.31 to 0.39)`: an estimate and its interval inside a sentence."""
    return f"{p.value:.3g}" if p.lo is None or p.hi is None else f"{p.value:.3g} ({p.lo:.3g} to {p.hi:.3g})"
