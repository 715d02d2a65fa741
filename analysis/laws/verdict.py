"""One paragraph in plain words: what a fit says, how sure it is, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from scalespec.analysis.laws.form import range_of
from scalespec.analysis.laws.law import FitStatus, Law, Param
from scalespec.analysis.laws.registry import form_of_law

_SHIFT = 0.1  # relative change of an exponent, by leaving out a handful of points, that deserves a sentence


def verdict(law: Law) -> str:
    """What the law says and why (not) to believe it, as one paragraph."""
    if FitStatus.TOO_FEW_POINTS in law.status:
        return _nothing(law)
    sentences = [_headline(law), _noise(law), *_troubles(law), *_influence(law), _use(law)]
    return " ".join(sentence for sentence in sentences if sentence)


def _nothing(law: Law) -> str:
    missed = law.diagnostics.get("not_bracketed")
    if missed is None:
        usable, d = law.n_points - len(law.excluded), law.diagnostics
        few = [
            f"{found} distinct values of {name.upper() if len(name) == 1 else name} where it needs {d['minimum_distinct'][name]}"
            for name, found in d.get("distinct", {}).items()
            if found < d["minimum_distinct"][name]
        ]
        short = (
            f"{usable} usable points where it needs {d['minimum_points']}"
            if usable < d.get("minimum_points", 0)
            else ""
        )
        lacks = " and ".join(filter(None, (short, *few))) or f"{usable} usable points"
        return f"No law was fitted: the form “{law.form}” has {lacks}. Add sizes or budgets rather than seeds."
    bracketed = len(law.diagnostics["points"]["c"])
    total = bracketed + sum(len(at["c"]) for at in missed.values())
    if not total:
        return "No best size can be seen: nowhere in compute were three sizes trained. Add sizes or fractions."
    reasons = {"smallest": "smaller sizes", "largest": "larger sizes", "too_few": "more sizes"}
    where = "; ".join(
        f"{len(at['c'])} want {reasons.get(why, 'seeds, or sizes further apart')}" for why, at in missed.items()
    )
    return (
        f"No law of the best size: of {total} budgets, the best size has measured neighbours on both sides at {bracketed} only "
        f"(of the others, {where}). A best size at the edge of the grid is not an optimum."
    )


def _headline(law: Law) -> str:
    say = law.params
    known = any(p.lo is not None for p in say.values())
    sure = f"{100 * law.level:g} % intervals, {law.resampling}" if known else f"no intervals: {law.resampling}"
    points = f"{law.n_used} points"
    if law.excluded:
        points += f" ({len(law.excluded)} left out)"
    form = form_of_law(law)
    if form.headline is not None:
        return f"{form.headline(law, points)} ({sure})."
    listed = ", ".join(f"{form.symbol(name)} = {range_of(p)}" for name, p in say.items())
    return f"From {points}, the form “{law.form}” for {law.target} gives {listed} ({sure})."


def _half_width(p: Param) -> float:
    return 0.0 if p.lo is None or p.hi is None else 0.5 * (p.hi - p.lo)


def _noise(law: Law) -> str:
    d = law.diagnostics
    if d.get("mape") is None:
        return ""
    said = f"The fitted losses miss the observed ones by {100 * d['mape']:.2g} % on average"
    noise = d.get("seed_noise_sd")
    if noise is None:
        return said + "; with one run a cell there is no estimate of the seed noise to compare this with."
    if noise <= 0:
        return said + "."
    ratio = d["residual_sd"] / noise
    if ratio > 2:
        return (
            f"{said}, {ratio:.2g} times the spread between seeds ({100 * noise:.2g} %): the form itself does not fit."
        )
    return f"{said}, in line with the spread between seeds ({100 * noise:.2g} %)."


def _troubles(law: Law) -> list[str]:
    d: Any = law.diagnostics
    form = form_of_law(law)
    out = []
    if FitStatus.NOT_CONVERGED in law.status:
        out.append("The optimizer did not converge: do not use these numbers.")
    if FitStatus.DID_NOT_MOVE in law.status:
        out.append("The optimizer never left its start: do not use these numbers.")
    if FitStatus.AT_BOUND in law.status:
        hit = d.get("at_bound", [])
        if "E" in hit:
            high = law.params["E"].hi
            limit = f" below {high:.3g}" if high is not None else ""
            out.append(f"The floor E ended on its lower bound: read it as{limit or ' not determined'}, not as a value.")
        others = [name for name in hit if name != "E"]
        if others:
            named = ", ".join(form.symbol(name) for name in others)
            out.append(f"{named} ended on a bound of the search: the data do not determine it.")
    elif "E" in law.params and (lo := law.params["E"].lo) is not None and lo < 0.05 * law.params["E"].value:
        out.append("The interval of the floor E reaches zero: only its upper end is evidence.")
    if dead := d.get("undetermined"):
        named = ", ".join(form.symbol(name) for name in dead)
        out.append(f"Nothing in the table depends on {named}: its value is that of the starting point.")
    elif FitStatus.FLAT_BASIN in law.status:
        out.append("Very different exponents fit almost equally well, so an exponent from this table means little.")
    if FitStatus.TOO_NARROW in law.status:
        narrow = [name[0].upper() for name in ("n_range", "d_range", "c_range") if d.get(name, 99) < 4]
        out.append(
            f"{' and '.join(narrow) or 'A variable'} spans less than a factor of four: too narrow for an exponent."
        )
    return out


def _influence(law: Law) -> list[str]:
    out = []
    form = form_of_law(law)
    words = {"highest_losses": "with the highest losses", "most_influential": "that pull it most"}
    singular = {"highest_losses": "with the highest loss", "most_influential": "that pulls it most"}
    for name, rest in law.diagnostics.get("left_out", {}).items():
        moved = []
        for p in form.exponents:
            if p in law.params and p in rest["params"]:
                now, then = law.params[p].value, rest["params"][p]
                if abs(then - now) > max(_SHIFT * abs(now), 0.5 * _half_width(law.params[p])):
                    moved.append(f"{form.symbol(p)} from {now:.3f} to {then:.3f}")
        if moved:
            k = len(rest["keys"])
            which = f"the {k} points {words[name]}" if k > 1 else f"the one point {singular[name]}"
            out.append(
                f"Leaving out {which} ({', '.join(rest['keys'])}) moves {' and '.join(moved)}: "
                "the law leans on so few points."
            )
    return out


def _use(law: Law) -> str:
    if law.clean:
        return "Losses predicted inside the fitted range are safer than the exponents; test any extrapolation with a backtest."
    if law.status & {FitStatus.NOT_CONVERGED, FitStatus.DID_NOT_MOVE}:
        return ""
    return "Use it to interpolate; do not quote its exponents, and do not extrapolate with it."
