# Needs Python 3.11 or newer, pip and make; everything else is installed into $(VENV).
#
#   make plan    install, then plan the built-in reference scenario
#   make test    install what the checks need, then lint, types, floors and tests
#   make bench   time the commands
#   make clean   remove what the above left here

PYTHON ?= python3
VENV ?= .venv
# The tests count parameters with torch's meta device and run on the CPU.
TORCH := torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: plan test lint types floors tests bench clean
.DELETE_ON_ERROR:

plan: $(VENV)/installed
	$(BIN)/moiety plan

test: lint types floors tests

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

floors: $(VENV)/installed-dev
	$(BIN)/lint-imports --no-logo

tests: $(VENV)/installed-dev
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	@set -e; for script in $(filter-out benchmarks/soak.py,$(wildcard benchmarks/*.py)); do \
		test -e "$$script" || { echo "no benchmarks yet"; exit 0; }; \
		echo "$$script"; $(BIN)/python "$$script"; \
	done

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install is repeated only when pyproject.toml has changed. It is editable, so the source need not be watched.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Moiety needs Python 3.11 or newer, this is " \
		+ sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) --editable '.[dev,runtime,serve]'
	@touch $@ $(VENV)/installed
