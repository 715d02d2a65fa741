"""The reference page of the command line, made from its own definition: `docs/reference/verbs.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

HEAD = """# The command line

`scalespec VERB`, the same as `python -m scalespec VERB`; `scalespec VERB --help` says what stands here.

| exit code | meaning |
|---|---|
| 0 | done; a diverged run is a result, and so is a law that should not be believed |
| 1 | finished with failed or missing runs, which are named; `doctor` found something to mend |
| 2 | bad input: one line names the key or file and the remedy, and nothing is written |
| 130 | interrupted; the command that continues is printed |
"""

COLUMNS = "| | default | meaning |\n|---|---|---|\n"


def markdown(app: typer.Typer) -> str:
    """The page."""
    group: Any = typer.main.get_command(app)
    return "\n".join([HEAD, *(_section(name, verb) for name, verb in group.commands.items())])


def _section(name: str, verb: Any) -> str:
    usage = " ".join([name, *map(_usage, verb.params)])
    table = f"\n{COLUMNS}{''.join(map(_row, verb.params))}" if verb.params else ""
    return f"## `{name}`\n\n{verb.help}\n\n`scalespec {usage}`\n{table}"


def _usage(param: Any) -> str:
    shown = " ".join(_words(param))
    if not param.required and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"{shown}…" if getattr(param, "multiple", False) else shown


def _words(param: Any) -> Iterator[str]:
    """The option, and what stands for its value; of an argument that alone."""
    option = param.opts[0].startswith("-")
    if option:
        yield param.opts[0]
    if not (option and param.is_flag):
        yield param.metavar or param.name.upper()


def _row(param: Any) -> str:
    default = "*needed*" if param.required else "" if param.default in (None, False) else f"`{param.default}`"
    return f"| `{' '.join(_words(param))}` | {default} | {param.help.replace('|', chr(92) + '|')} |\n"
