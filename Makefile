# Each target is one command, and sets up what it needs: Python >= 3.11 and make are enough.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench build constraints clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Run a DAG on a real Airflow, with a simulator in place of Luma
	@exec $(BIN)/python -m demo

test: $(VENV)/.dev  ## Run every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## Measure, side by side with the official providers
	$(BIN)/python -m benchmarks

build: $(VENV)/.dev  ## Build wheel and sdist into dist/
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .

constraints: $(VENV)/.dev  ## Pin the newest versions that go together into constraints.txt
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade \
		--all-extras pyproject.toml --output-file constraints.txt

clean:  ## Remove all that the other targets made
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing Airflow and the provider into $(VENV) (a minute or two, the first time only) ..."
	@$(PIP) --editable '.[simulator]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what the tests need ..."
	@$(PIP) --editable '.[dev]'
	@touch $@
