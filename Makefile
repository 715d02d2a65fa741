# Two commands matter: `make quickstart` and `make test`. Each makes .venv when it is missing.
# python3 where its version fits, else the newest that does and really runs (a version manager's shim may not)
FITS := 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c $(FITS) 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
STUDY ?= studies/quickstart.yaml

.PHONY: quickstart test lint types format docs clean

quickstart: $(READY)
	$(BIN)/scalespec run $(STUDY)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	rm -rf build/typing && mkdir -p build/typing
	mkdir build/typing/scalespec && ln -s $(CURDIR)/scalespec/* $(CURDIR)/analysis $(CURDIR)/orchestrator $(CURDIR)/trainables build/typing/scalespec/
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build
	@echo docs/_build/index.html

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c $(FITS) || { echo "scalespec needs CPython 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
