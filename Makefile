# Each target is one command, and sets up what it needs: Python >= 3.11 and make are all it takes.

PYTHON ?= python3
# The Airflow to work with, which has its own pins. Each pair of Airflow and Python has an environment of its own.
AIRFLOW ?= 3.3
VENV ?= .venv$(if $(filter-out 3.3,$(AIRFLOW)),-$(AIRFLOW))$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN = $(VENV)/bin
PINS = constraints/airflow-$(AIRFLOW).txt
# Tests wait more than they work. Those that share an Airflow stay together.
IN_PARALLEL = -n 3 --dist loadgroup
# A warning is an error, and so is a reference to nothing.
SPHINX = --builder html --nitpicky --fail-on-warning --keep-going --quiet --jobs auto --doctree-dir docs/_build/doctrees
COMPILE = --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade pyproject.toml
# What users install beside Airflow. No image holds PyAV, so that is as new as the package needs it.
FOR_USERS = $(foreach extra,simulator s3 gcs azure openlineage,--extra $(extra)) --exclude-newer-package av=false
# uv takes seconds where pip takes minutes, and does not read which index pip is configured to use.
INSTALL = index=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || echo "$$PIP_INDEX_URL"); \
	$${index:+env UV_DEFAULT_INDEX=$$index} $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint $(PINS)

# Containers often set this, and every process would then compile the sources of Airflow anew, which takes 5 seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-cluster docs screenshots check test test-long test-versions test-matrix test-live smoke lint bench build constraints clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Run a DAG on a real Airflow, with a simulator in place of Luma
	@exec $(BIN)/python -m demo

demo-cluster: $(VENV)/.cluster  ## The same on PostgreSQL, Redis and Celery, with two workers and two triggerers
	@exec $(BIN)/python -m demo --cluster

docs: $(VENV)/.docs  ## Build the documentation site into docs/_build
	$(BIN)/python -m sphinx $(SPHINX) docs docs/_build/html
	@echo "The site: docs/_build/html/index.html"

screenshots: $(VENV)/.dev  ## Take the pictures of the documentation anew, from a running demo
	$(BIN)/python -m demo.screenshots

check: lint  ## Check style and types, and run the unit tests but the slow ones: the loop of a contributor
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not (e2e or slow or long)" $(PYTEST_ARGS)

test: $(VENV)/.dev  ## Run all tests but the long ones, also on a running Airflow
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not long" $(PYTEST_ARGS)

test-long: $(VENV)/.dev  ## Run the tests that take minutes: before a release, and when you touch their subject
	$(BIN)/python -m pytest $(IN_PARALLEL) -m long $(PYTEST_ARGS)

# Code that does not use Airflow behaves the same on every version. So do some tests of code that does: their subjects are
# our own files and programs, and the responses of servers. Slow files count as such, unless they are marked `versions`.
SAME_EVERYWHERE = $(addprefix tests/,core services transport waiting media simulator test_architecture.py \
	test_live_check.py test_local_airflow.py operators/test_batch_safety.py) \
	$(addprefix tests/files/test_download_,existing_files.py hostile_servers.py renewal.py) tests/files/test_uploads_to_luma.py

test-versions: $(VENV)/.dev  ## Run the unit tests, and what behaves differently on another Airflow: AIRFLOW=3.1
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not long and (versions or not (e2e or slow))" \
		$(addprefix --ignore ,$(SAME_EVERYWHERE)) $(PYTEST_ARGS)

test-matrix:  ## Run the tests, without the long ones, on every supported Airflow
	$(MAKE) test AIRFLOW=3.1
	$(MAKE) test AIRFLOW=3.2
	$(MAKE) test AIRFLOW=3.3
	$(MAKE) test AIRFLOW=3.4

test-live: $(VENV)/.demo  ## Call the real service: LUMA_LIVE=free (no cost) or LUMA_LIVE=1 (one job, about 0.54 US dollars)
	$(BIN)/python -m harness.live_check

smoke: $(VENV)/.demo  ## Import everything and run two jobs, with the oldest versions that the package claims: AIRFLOW=lowest
	$(BIN)/python -m harness.smoke

lint: $(VENV)/.dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## Measure, side by side with the official providers (an hour)
	$(INSTALL) --editable '.[bench]'
	$(BIN)/python -m benchmarks

build: $(VENV)/.dev  ## Build wheel and sdist into dist/
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .

# Airflow 3.2 does not work with FastAPI 0.137 or newer, though only 3.3 says so. Airflow's images hold what was newest
# on the day of the release: the last two files pin that for 3.1.0, the oldest Airflow that the package claims, with the
# oldest of what the package itself requires, and for 3.1.8.
constraints: $(VENV)/.dev  ## Pin the newest versions that go together, for every supported Airflow
	printf "apache-airflow==3.4.0b2\napache-airflow-core==3.4.0b2\napache-airflow-task-sdk==1.4.0b2\n" | \
		$(BIN)/python -m uv pip compile $(COMPILE) --all-extras --constraint /dev/stdin --output-file constraints/airflow-3.4.txt
	for airflow in 3.1 3.2 3.3; do \
		printf "apache-airflow~=$$airflow.0\nfastapi<0.137\n" | $(BIN)/python -m uv pip compile $(COMPILE) --all-extras \
			--constraint /dev/stdin --output-file constraints/airflow-$$airflow.txt || exit 1; \
	done
	$(BIN)/python -m uv pip compile $(COMPILE) $(FOR_USERS) --resolution lowest-direct --exclude-newer 2025-09-26 \
		--output-file constraints/airflow-lowest.txt
	echo apache-airflow==3.1.8 | $(BIN)/python -m uv pip compile $(COMPILE) $(FOR_USERS) --exclude-newer 2026-03-12 \
		--constraint /dev/stdin --output-file constraints/airflow-3.1.8.txt

clean:  ## Remove all that the other targets made
	rm -rf .venv .venv-* .demo build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(PINS)
	@echo "Installing Airflow and the provider into $(VENV) (a minute, the first time only) ..."
	@$(BIN)/python -c 'import uv' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(INSTALL) --editable '.[simulator]'
	@touch $@

$(VENV)/.cluster: $(VENV)/.demo
	@echo "Installing Celery ..."
	@$(INSTALL) --editable '.[cluster]'
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "Installing Sphinx ..."
	@$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $@
