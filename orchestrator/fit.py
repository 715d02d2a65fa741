"""`scalespec fit`: a certified fit of anyone's table."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import laws, tables
from analysis.laws import Law
from orchestrator.errors import InputError

MIN_POINTS = 6
SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Columns:
    """Which columns of the table are what. Two of n, d, c; the third follows from C = 6ND."""

    loss: str
    n: str | None = None
    d: str | None = None
    c: str | None = None


def read_table(path: str) -> pd.DataFrame:
    """A CSV or Parquet file. Raises InputError naming the file and the remedy."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if file.suffix == ".parquet":
            return tables.to_pandas(tables.read_parquet(str(file)))
        # of the usual separators the one that makes most columns; pandas' own guess takes any character
        return pd.read_csv(file, sep=max(SEPARATORS, key=lambda sep: pd.read_csv(file, sep=sep, nrows=0).shape[1]))
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a CSV or Parquet table ({str(error).splitlines()[0]})") from error


def select(frame: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows where a comparison of columns with constants holds, such as `batch_size == 32 and width > 16`."""
    if where is None:
        return frame
    try:
        tree = ast.parse(re.sub("`[^`]*`", "column", where), mode="eval")
        if any(isinstance(node, ast.Call | ast.Attribute) for node in ast.walk(tree)):
            raise ValueError("columns, constants and comparisons only")
        kept = frame.eval(where, engine="python", local_dict={}, global_dict={})
        if not isinstance(kept, pd.Series) or not pd.api.types.is_bool_dtype(kept):
            raise ValueError("is neither true nor false for a row")
    except Exception as error:
        raise InputError(
            f"--where {where}: {str(error).splitlines()[0]}; write it like 'width > 16 and seed == 0'"
        ) from error
    return frame[kept.fillna(False).astype(bool)]


def points(frame: pd.DataFrame, columns: Columns, drop_highest: int = 0) -> tuple[pd.DataFrame, str]:
    """Columns n, d, c, loss as numbers, and in words how the third of n, d, c was obtained. Raises InputError."""
    given = {
        name: column for name, column in (("n", columns.n), ("d", columns.d), ("c", columns.c)) if column is not None
    }
    if len(given) < 2:
        raise InputError("give two of --n, --d and --c; the third follows from C = 6ND")
    out = pd.DataFrame({"loss": _numbers(frame, "--loss", columns.loss)})
    for name, column in given.items():
        out[name] = _numbers(frame, f"--{name}", column)
    said = "N, D and C as given"
    if "d" not in out:
        out["d"], said = out["c"] / (6 * out["n"]), "D = C / 6N"
    elif "n" not in out:
        out["n"], said = out["c"] / (6 * out["d"]), "N = C / 6D"
    elif "c" not in out:
        out["c"], said = 6 * out["n"] * out["d"], "C = 6ND"
    if drop_highest:
        out = out.drop(index=out["loss"].nlargest(drop_highest, keep="first").index)
    if len(out) < MIN_POINTS:
        raise InputError(f"{len(out)} points; at least {MIN_POINTS} are needed for five parameters")
    return out, said


def _numbers(frame: pd.DataFrame, option: str, column: str) -> np.ndarray:
    if column not in frame.columns:
        raise InputError(f"{option} {column}: no such column; the table has: {', '.join(map(str, frame.columns))}")
    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~np.isfinite(values) | (values <= 0))
    if len(bad):
        what = frame[column].iloc[bad[0]]
        raise InputError(
            f"{option} {column}: row {int(bad[0]) + 1} is {what!r}, {len(bad)} such in all; values must be finite and positive:"
            f" leave them out with --where '{column} > 0' or repair them"
        )
    return values


def certify(data: pd.DataFrame, *, form: str = "chinchilla", delta: float | None = None, resamples: int = 400) -> Law:
    """The fit of `points`' table."""
    if form == "chinchilla":
        try:
            return laws.fit_chinchilla(
                data["n"].to_numpy(), data["d"].to_numpy(), data["loss"].to_numpy(), delta=delta, resamples=resamples
            )
        except ValueError as error:
            raise InputError(str(error)) from error
    raise InputError(f"--form {form}: not one of chinchilla")


def write(law: Law, path: str) -> None:
    """Writes the law as JSON."""
    try:
        Path(path).write_text(json.dumps(law.to_json(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}") from error
