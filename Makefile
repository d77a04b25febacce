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

# A machine with a card may reach no registry: what it lacks beside torch, triton and numpy comes
# from a folder of wheels that `make wheels` fills elsewhere, and is used where it is.
WHEELS ?= wheels
WHEELS_PYTHON ?= 3.12
GPU_PACKAGES := build/gpu-packages
GPU_NEEDS := textual plotext platformdirs msgspec safetensors tomlkit charset-normalizer psutil \
	nvidia-ml-py pytest pytest-asyncio pytest-timeout pytest-textual-snapshot pyte
ifneq ($(wildcard $(WHEELS)),)
GPU_READY := $(GPU_PACKAGES)/.installed
GPU_PYTHON := PYTHONPATH=$(CURDIR):$(CURDIR)/$(GPU_PACKAGES) $(PYTHON)
else
GPU_READY := $(DEV)
GPU_PYTHON := $(BIN)/python
endif

.PHONY: check-gpu bench-gpu wheels run test test-slow check format lint types pages docs screenshots tour torture clean

run: $(RUNS)
	$(BIN)/megatron-tui

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not slow and not gpu'

test-slow: $(DEV)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow

check: $(DEV) lint types test

check-gpu: $(GPU_READY)
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu

bench-gpu: $(GPU_READY)
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

wheels:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest $(WHEELS) \
		--python-version $(WHEELS_PYTHON) --only-binary=:all: \
		$(CONSTRAINTS:%=--constraint %) $(GPU_NEEDS)

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

tour: $(DEV)
	$(BIN)/python -m tools.tour

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

$(GPU_PACKAGES)/.installed: $(wildcard $(WHEELS)/*.whl)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade \
		--target $(GPU_PACKAGES) $(WHEELS)/*.whl
	touch $@

$(DOCS): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(PIP) --editable '.[docs]'
	touch $@
