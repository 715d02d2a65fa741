"""What is committed of a run, read back: what counts, and nothing that is damaged."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import safetensors.torch

from scalespec.trainables.commits import read_committed, read_json
from scalespec.trainables.files import Files
from scalespec.trainables.history import (
    CLAIM,
    RESULT,
    STATE,
    History,
    StatePath,
    attempt_folder,
    attempt_of,
    history,
    is_claim,
)
from scalespec.trainables.io import State, ValRows

log = logging.getLogger("scalespec.checkpoints")

Row = dict[str, Any]
"""One metric point: step, samples, flops, metric, value, time_ms."""


class Codec(Protocol):
    """How rows become files; the orchestrator's is Parquet."""

    suffix: str

    def encode_metrics(self, rows: Sequence[Row]) -> bytes: ...

    def decode_metrics(self, data: bytes) -> list[Row]: ...

    def encode_val(self, val: ValRows) -> bytes: ...


class JsonCodec:
    """One JSON object a line: no dependency, readable anywhere."""

    suffix = "jsonl"

    def encode_metrics(self, rows: Sequence[Row]) -> bytes:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def decode_metrics(self, data: bytes) -> list[Row]:
        return [json.loads(line) for line in data.decode().splitlines()]

    def encode_val(self, val: ValRows) -> bytes:
        correct = np.full(len(val.loss), np.nan) if val.correct is None else val.correct
        rows = (
            {
                "example_id": i,
                "half": "select" if s else "report",
                "loss": float(x),
                "correct": None if np.isnan(c) else float(c),
            }
            for i, (x, c, s) in enumerate(zip(val.loss, correct, val.select, strict=True))
        )
        return "".join(json.dumps(row) + "\n" for row in rows).encode()


class RunRecord:
    """One run, or a family's trunk, in a folder of a file store. Changes nothing.

    It is seen from the newest attempt; from `attempt` where that is given, which knows nothing of its successors.
    """

    def __init__(self, files: Files, folder: str, codec: Codec | None = None) -> None:
        self.files, self.folder, self.codec = files, folder, codec or JsonCodec()
        self.attempt: int | None = None

    def claims(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first."""
        found = ((number, self._json(f"{attempt_folder(number)}/{CLAIM}")) for number in self._numbers())
        return [{**claim, "attempt": number} for number, claim in found if is_claim(claim)]

    def history(self) -> History:
        """What counts. Paths are those of `files`."""
        paths = self.files.walk(self.folder)
        newest, claim = self._deciding(paths)
        return history(paths, {newest: claim}, f"{self.folder}/")

    def _deciding(self, paths: Sequence[str]) -> tuple[int, Any]:
        """The newest claim that can be read, with its number; of this attempt's predecessors its own claim decides."""
        numbers = {number: path for path in paths if (number := _claimed(path)) and number <= (self.attempt or number)}
        for number in sorted(numbers, reverse=True):
            if is_claim(claim := self._json(numbers[number])):
                return number, claim
        return 0, None

    def _numbers(self) -> list[int]:
        """Attempt numbers in the folder, claimed or about to be, in order."""
        return sorted(n for name in self.files.names(self.folder) if (n := attempt_of(name)) is not None)

    def _json(self, path: str) -> Any:
        return read_json(self.files, f"{self.folder}/{path}")

    def result(self) -> dict[str, Any] | None:
        """The committed result, or None. A result of an attempt that has been replaced is none."""
        for number in reversed(self._numbers()):
            if number <= (self.attempt or number) and is_claim(self._json(f"{attempt_folder(number)}/{CLAIM}")):
                found = self._json(f"{attempt_folder(number)}/{RESULT}")
                return found if isinstance(found, dict) and isinstance(found.get("status"), str) else None
        return None

    def metrics(self, seen: History | None = None) -> list[Row]:
        """All points that count, one a (step, metric), by step. `seen`: a history read before."""
        points = {(row["step"], row["metric"]): row for row in self.read_parts((seen or self.history()).metric_parts)}
        return [points[key] for key in sorted(points)]

    def read_parts(self, paths: Iterable[str]) -> Iterator[Row]:
        """The points in metric parts; a damaged part is named in the log and passed over."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                data = self.files.read(path)
                try:
                    rows = self.codec.decode_metrics(data)
                    if not all(row.keys() >= {"step", "metric", "value"} for row in rows):
                        raise ValueError("not rows of metrics")
                except (OSError, ValueError, KeyError, AttributeError) as error:  # pyarrow has OSErrors for damage
                    log.warning("%s is damaged and left out (%s)", path, error)
                    continue
                yield from rows

    def load_latest(self, at_most: int | None = None) -> State | None:
        """The newest valid state up to a step; one that fails its manifest is passed over."""
        for at in reversed(self.history().states):
            if (at_most is None or at.step <= at_most) and (found := self._state(at)) is not None:
                return found
        return None

    def _state(self, at: StatePath) -> State | None:
        found = read_committed(self.files, at.path)
        if found is None or not isinstance(found[0].get("meta"), dict) or STATE not in found[1]:
            return None
        try:
            return State(at.step, safetensors.torch.load(found[1][STATE]), found[0]["meta"])
        except (safetensors.SafetensorError, ValueError, KeyError):
            return None

    def checkpoint_steps(self) -> list[int]:
        return list(self.history().checkpoints)


def _claimed(path: str) -> int | None:
    folder, _, name = path.partition("/")
    return attempt_of(folder) if name == CLAIM else None
