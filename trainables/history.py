"""Which files of a run count: a pure rule over a listing of its folder and the claims in it.

Every attempt at a run writes below a folder of its own, `e000001/`, `e000002/` …, and owns it from the moment at which it creates
`claim.json` there. The claim says which state the attempt goes on from, `after: {attempt, step}`, and so how much of each older
attempt counts from now on, `before: {attempt: last step}`: nothing above that state, and nothing that an older claim had ruled out.
So a worker that was cut off and goes on writing changes nothing, and nothing has to be taken back. A family's trunk is kept in the
same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WEIGHTS, STATE, MANIFEST, RESULT, CLAIM, LAST_WORDS = (
    "model.safetensors",
    "state.safetensors",
    "manifest.json",
    "result.json",
    "claim.json",
    "last_words.json",
)

_ATTEMPT = re.compile(r"e(\d{6,18})")
_STEP = re.compile(r"step-(\d{8,18})")
_PART = re.compile(r"metrics/part-(\d{8,18})\.(?:parquet|jsonl)")
_COMMIT = re.compile(rf"(?:(checkpoints|media|resume)/)?{_STEP.pattern}/{re.escape(MANIFEST)}")
_VAL = re.compile(r"val\.(?:parquet|jsonl)")


class StatePath(NamedTuple):
    """A state from which training can go on, if its manifest holds."""

    step: int
    attempt: int
    path: str


@dataclass(frozen=True)
class History:
    """What counts of a run."""

    attempts: tuple[int, ...] = ()
    """Those of which something may count, oldest first; the last one's claim decides."""
    metric_parts: tuple[str, ...] = ()
    """By attempt, then by step: where two hold the same point, the later one counts."""
    settled_parts: tuple[str, ...] = ()
    """Those of them that no resume can take back: a state stands at or above them, or the run has its result."""
    checkpoints: Mapping[int, str] = field(default_factory=dict)
    """Step → folder, by step."""
    media: Mapping[int, str] = field(default_factory=dict)
    """Step → folder, by step."""
    states: tuple[StatePath, ...] = ()
    """By step, then by attempt: the newest last."""
    val_path: str | None = None
    result_path: str | None = None


def history(paths: Iterable[str], claims: Mapping[int, Any], root: str = "") -> History:
    """The history of a run from the paths below its folder and the parsed claims of its attempts.

    The newest claim decides; only where it is damaged an older one is asked, so `claims` may leave out all but the newest.
    Foreign names are passed over. `root` is put before every path that comes out.
    """
    newest = max((attempt for attempt, claim in claims.items() if is_claim(claim)), default=0)
    bounds = {newest: math.inf, **before(claims[newest])} if newest else {}
    files: dict[int, list[str]] = {attempt: [] for attempt in sorted(bounds)}
    for path in paths:
        folder, _, rest = path.partition("/")
        if (attempt := attempt_of(folder)) in files:
            files[attempt].append(rest)
    own = files.get(newest, [])
    finished = RESULT in own
    parts: list[tuple[str, bool]] = []
    found: dict[str, dict[int, str]] = {"checkpoints": {}, "media": {}}
    states: list[StatePath] = []
    for attempt, bound in sorted(bounds.items()):
        head, steps = root + attempt_folder(attempt), []
        for rest in files[attempt]:
            match = _COMMIT.fullmatch(rest)
            if match and int(match[2]) <= bound:
                kind, step, path = match[1], int(match[2]), f"{head}/{rest.rpartition('/')[0]}"
                if kind in found:
                    found[kind][step] = path
                else:
                    states.append(StatePath(step, attempt, path))
                    steps.append(step)
        settled = math.inf if finished or attempt != newest else max(steps, default=-1)
        numbered = sorted((int(match[1]), rest) for rest in files[attempt] if (match := _PART.fullmatch(rest)))
        parts += [(f"{head}/{rest}", step <= settled) for step, rest in numbered if step <= bound]
    head = root + attempt_folder(newest)
    return History(
        attempts=tuple(files),
        metric_parts=tuple(path for path, _ in parts),
        settled_parts=tuple(path for path, settled in parts if settled),
        checkpoints=dict(sorted(found["checkpoints"].items())),
        media=dict(sorted(found["media"].items())),
        states=tuple(sorted(states)),
        val_path=next((f"{head}/{name}" for name in own if finished and _VAL.fullmatch(name)), None),
        result_path=f"{head}/{RESULT}" if finished else None,
    )


def is_claim(found: Any) -> bool:
    """Whether a claim's JSON has the shape of one."""
    if not isinstance(found, dict) or not isinstance(found.get("before"), dict):
        return False
    if not isinstance(found.get("session"), str) or type(found.get("time")) not in (int, float):
        return False
    return all(key.isascii() and key.isdigit() and type(step) is int for key, step in found["before"].items())


def before(claim: Mapping[str, Any]) -> dict[int, int]:
    """Older attempt → the last step of it that counts after this claim."""
    return {int(attempt): step for attempt, step in claim["before"].items()}


def attempt_folder(attempt: int) -> str:
    """`e000002`."""
    return f"e{attempt:06d}"


def attempt_of(name: str) -> int | None:
    """The number of an attempt's folder; None for other names."""
    match = _ATTEMPT.fullmatch(name)
    return int(match[1]) if match else None


def step_folder(step: int) -> str:
    """`step-00001234`."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a name such as `step-00001234`; None for other names."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None
