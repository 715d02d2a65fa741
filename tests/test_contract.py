"""docs/contract.md shows exactly the schemas of analysis/tables.py."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from scalespec.analysis import tables
from scalespec.orchestrator.design import log
from scalespec.orchestrator.design.ask import Decided

CONTRACT = Path(__file__).parents[1] / "docs" / "contract.md"
SHOWN = {
    **tables.TABLES,
    "metrics/part-*": tables.METRICS_PART,
    "val": tables.VAL,
    "laws": tables.LAWS,
    "laws.parquet": tables.LAW_EVIDENCE,
}


def markdown(schema: pa.Schema) -> list[str]:
    """A schema as the rows of a table."""
    lines = ["| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
    for field in schema:
        unit, meaning = (field.metadata[key].decode().replace("|", "\\|") for key in (b"unit", b"description"))
        lines.append(f"| `{field.name}` | {field.type} | {unit} | {'yes' if field.nullable else ''} | {meaning} |")
    return lines


@pytest.mark.parametrize("name", SHOWN)
def test_the_contract_shows_the_schema(name):
    text = CONTRACT.read_text()
    found = re.search(rf"^### {re.escape(name)}\n(?:.*\n)*?(\| column.*\n(?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"docs/contract.md has no table under '### {name}'"
    shown, expected = found.group(1).splitlines(), markdown(SHOWN[name])
    assert shown == expected, "put this into docs/contract.md:\n" + "\n".join(expected)


def test_the_contract_names_version_and_statuses():
    text = CONTRACT.read_text()
    assert f"schema_version {tables.SCHEMA_VERSION}" in text
    for word in (*tables.RUN_STATUSES, *tables.ERROR_REASONS, *tables.SPECTRUM_STATUSES, *tables.FIT_STATUSES):
        assert f"`{word}`" in text, word


def test_the_contract_names_the_keys_of_an_ask():
    found = re.search(r"^    \{(schema_version, number, .*)\}$", CONTRACT.read_text(), re.MULTILINE)
    assert found
    assert set(found[1].split(", ")) == set(log.to_json(Decided()))


def test_the_contract_names_every_table():
    assert f"tables/{{{','.join(tables.TABLES)}}}.parquet" in CONTRACT.read_text()
