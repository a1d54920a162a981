# Every target sets up what it needs, in a clone and in an unpacked archive, and says what it is doing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0

# Each file with tests of engines has a worker of its own: after OpenVINO was used in a process, the end of a child
# process was seen to crash it.
ENGINES := -n 3 --dist loadfile tests/unit/test_engines.py tests/unit/test_export.py tests/unit/test_quantise.py
SLOW_ENGINES := -n 3 --dist loadfile tests/unit/test_benchmark.py tests/unit/test_engines.py tests/unit/test_export.py

.PHONY: help repro test test-slow check bench bench-gpu clean

help:
	@echo "make repro      run the whole pipeline on the embedded data, from the settings to the tables"
	@echo "make test       run the tests (below 10 minutes on two cores)"
	@echo "make test-slow  run the slow tests: whole pipelines, several workers and nodes, tracking servers"
	@echo "make check      check style, types, import layers, infra/, the documentation, and our counts beside the paper's"
	@echo "make bench      measure speed relative to plain versions of the same computations, also on a busy machine"
	@echo "make bench-gpu  measure the GPU of this machine in ten minutes; without one, try the cases on the CPU"
	@echo "make clean      remove what was built; keeps the virtual environment"

$(READY): pyproject.toml constraints.txt yolov7/data/augment/_colour.c
	@echo "== setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@rm -f yolov7/data/augment/_colour*.so
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/bin/python -c 'from yolov7.data.augment import _colour' 2> /dev/null \
		|| echo "== no C compiler: NumPy recolours the samples, which takes longer"
	@touch $@

repro: $(READY) | .dvc/tmp
	@echo "== dvc repro"
	@dvc repro
	@yolov7 tables --show

.dvc/tmp:
	@test "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$(CURDIR)" || dvc config --local core.no_scm true
	@mkdir -p $@

test: $(READY)
	@echo "== pytest"
	@python -m pytest -n auto --dist loadfile -m "not slow and not gpu and not engines"
	@python -m pytest -m "engines and not slow and not gpu" $(ENGINES)

test-slow: $(READY)
	@echo "== pytest, slow tests"
	@python -m pytest -n auto --dist loadfile -m "slow and not engines"
	@python -m pytest -m "slow and engines" $(SLOW_ENGINES)

check: $(READY)
	@echo "== ruff"
	@ruff check .
	@ruff format --check .
	@echo "== mypy"
	@mypy
	@echo "== import-linter"
	@lint-imports
	@echo "== infra"
	@python -m pytest -q tests/contract/test_infra.py
	@echo "== documentation"
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "== the paper's tables"
	@yolov7 tables --check

bench: $(READY)
	@echo "== benchmarks"
	@python -m tests.bench
	@for busy in 1 4; do python -m tests.bench --busy $$busy; done
	@python -m tests.bench --markdown

# Without setting anything up, so that it runs in an image that has torch but no network: make bench-gpu PYTHON=python3
bench-gpu:
	@echo "== benchmark of the GPU"
	@$(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON)) -m tests.bench.gpu

clean:
	@echo "== removing artifacts, runs, the tracking store and caches"
	@rm -rf artifacts runs mlruns mlartifacts mlflow.db build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find yolov7 pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +
