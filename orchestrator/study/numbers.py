"""Numbers as people write them in a study: `1e-3`, `1/2`, `sqrt(2)`, exact fractions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from scalespec.trainables.keys import shown

_OPERATORS: Mapping[type, Any] = {ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow}

LONGEST = 100
"""Characters of a number; longer texts are refused before they are read."""

LARGEST_BITS = 1024
"""Of a whole number on the way: where floats end. Without it `10**64**64` computes for hours."""


def number(value: Any) -> Any:
    """A number, or text such as `1e-3`, `1/2`, `sqrt(2)`, `2**0.5` as the number it means. Raises ValueError otherwise."""
    if not isinstance(value, str):
        return value
    try:
        if len(value) > LONGEST:
            raise ValueError
        return _evaluate(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"{shown(value)} is not a number; write it as 0.001, 1e-3, 1/2 or sqrt(2)") from error


def _evaluate(node: ast.expr) -> int | float:
    value = _value(node)
    if isinstance(value, complex) or (isinstance(value, int) and value.bit_length() > LARGEST_BITS):
        raise ValueError
    return value


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError
        case ast.Constant(value=int() | float() as constant):
            return constant
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _evaluate(left), _evaluate(right)
            if isinstance(op, ast.Pow) and abs(b) > 64:
                raise ValueError
            return _OPERATORS[type(op)](a, b)  # type: ignore[no-any-return]
        case ast.Call(func=ast.Name(id="sqrt"), args=[argument], keywords=[]):
            return math.sqrt(_evaluate(argument))
    raise ValueError


def fraction(value: Any) -> Fraction:
    """An exact rational from 1, 0.25, `1/3` or `0.1`. Raises ValueError otherwise."""
    try:
        if isinstance(value, bool) or (isinstance(value, str) and (len(value) > LONGEST or "e" in value.lower())):
            raise ValueError  # Fraction("1e-999999999") would compute the integer
        return Fraction(str(value)) if isinstance(value, float | str) else Fraction(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{shown(value)} is not a fraction; write it as 1/4 or 0.25") from error
