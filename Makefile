# Two commands matter: `make quickstart` and `make test`. Each makes .venv when it is missing.
PYTHON ?= $(firstword $(foreach v,3.13 3.12 3.11,$(shell command -v python$(v) 2>/dev/null)) python3)
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
STUDY ?= studies/quickstart.yaml

.PHONY: quickstart test lint format docs clean

quickstart: $(READY)
	$(BIN)/scalespec run $(STUDY)

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "scalespec needs CPython 3.11, 3.12 or 3.13; found " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
