# Everything runs in .venv, as any user, without a terminal.
#
#   make demo     learn a few documents and ask about them
#   make test     what CI runs: lint, types, the fast tests, then the tests on the real model
#
# PYTHON           the interpreter that makes .venv (3.11 or newer)
# TORCH_PIP_ARGS   given to pip when it installs torch alone, for example
#                  --index-url https://download.pytorch.org/whl/cpu
#                  Without it a machine with no CPU wheel of its own gets PyPI's CUDA build.

SHELL := /bin/bash
PYTHON ?= python3
TORCH_PIP_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TORCH := $(shell grep '^torch==' constraints.txt)
# The model is fetched by `make model`; no test looks for it on the hub.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.NOTPARALLEL:
.PHONY: venv model demo test test-fast test-e2e test-slow lint format clean

venv: .make/installed

# torch first and by itself: pip would otherwise choose the newest release with all of CUDA.
.make/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"cmt needs Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install $(TORCH_PIP_ARGS) '$(TORCH)'
	$(PIP) install -c constraints.txt -e '.[dev]'
	@mkdir -p .make
	@touch $@

model: .make/installed
	$(BIN)/cmt fetch

demo: model
	$(BIN)/cmt demo

# In this order, each once (hence .NOTPARALLEL).
test: model lint test-fast test-e2e

lint: .make/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .make/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-fast: .make/installed
	$(PYTEST) -m "not e2e and not slow"

test-e2e: model
	$(PYTEST) -m e2e

test-slow: model
	$(PYTEST) -m slow

# Build products and caches only: .venv, the fetched model and your banks stay.
clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find cmt tests benchmarks recipes -name __pycache__ -type d -prune -exec rm -rf {} +
