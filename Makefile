# The newcomer's two commands are `make run` and `make test`; both make the environment first.
# `make test-slow` runs the tests that need real processes, mounts or long logs.
# `make pages` writes the pages of docs/ that come from the code; `make docs` builds the site.
# `make bench-train ARGS=shakespeare.txt` hands arguments to a benchmark.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Versions that fit together and with this code; `make CONSTRAINTS=` takes the newest there are.
CONSTRAINTS ?= constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %)

# What was installed: what running needs, the tools of development, those of the site.
RUNS := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs

.PHONY: run test test-slow check format lint types pages docs screenshots torture clean

run: $(RUNS)
	$(BIN)/megatron-tui

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not slow'

test-slow: $(DEV)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow

check: $(DEV) lint types test

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(DEV)
	$(BIN)/python -m mypy

pages: $(DEV)
	$(BIN)/python -m tools.pages

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/site

screenshots: $(DEV)
	$(BIN)/python -m tools.screenshots

torture: $(DEV)
	$(BIN)/python -m benchmarks.torture

bench-%: $(DEV)
	$(PIP) --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks.$* $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# pip is what a half-made environment lacks (Debian without python3-venv): it is made anew then.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(RUNS): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(PIP) --editable .
	touch $@

$(DEV): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(PIP) --editable '.[dev]'
	touch $(RUNS) $@

$(DOCS): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(PIP) --editable '.[docs]'
	touch $@
