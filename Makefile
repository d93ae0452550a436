# The verbs of this project. Each one sets up what it needs in .venv, and says so when that takes long.
#
# PYTHON=python3.12 picks the interpreter; WORKERS=8 the test processes; ARGS="-k hub" goes to pytest.
# Linux without a GPU: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes of torch.

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

# `make gpu` runs with the python of the machine, where torch and Triton are, and installs nothing.
GPU_PYTHON ?= python3
PART ?= check bf16 fp8 batch
SIZE ?= 26b
OUT  ?= runs/gpu

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --constraint constraints.txt
OTHER  := name one of 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q

# What the caller's shell has must not leak into .venv.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
SORTED := Sort: 31 13 33 11 3 1 30 10

.PHONY: help demo test bench gpu pictures check fix clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.runtime ## Watch a small model write, here and now; ARGS="--pace 0" for its own speed
	@$(PY) examples/demo.py $(ARGS)

test: $(VENV)/.test ## Run the tests
	@echo "running the tests in $(WORKERS) processes"
	@$(PYTEST) -n $(WORKERS) $(ARGS)

bench: $(VENV)/.test ## Time this package beside transformers on the CPU; ARGS="--quick" for one case
	@$(PY) -m diffusiongemma bench $(ARGS)

gpu: ## Check and time it whole-size on a GPU: PART=check|bf16|fp8|batch, or all; SIZE=toy rehearses
	@$(GPU_PYTHON) -c 'import torch, jaxtyping, safetensors, tokenizers' || { \
	    echo "error: '$(GPU_PYTHON)' lacks a package; name a Python that has torch: make gpu GPU_PYTHON=.venv/bin/python" >&2; exit 1; }
	@failed=; for part in $(PART); do \
	    PYTHONPATH=src $(GPU_PYTHON) -m diffusiongemma bench --size $(SIZE) --part $$part --out $(OUT) $(ARGS) || failed="$$failed $$part"; \
	done; [ -z "$$failed" ] || { echo "error: these parts failed:$$failed; see $(OUT)" >&2; exit 1; }

pictures: $(VENV)/.runtime ## Draw the documents' pictures anew, from real runs
	@$(PY) -m diffusiongemma trace "$(SORTED)" --seed 3 --out docs/pictures/moving.svg
	@$(PY) -m diffusiongemma trace "$(SORTED)" --seed 3 --out docs/pictures/strip.svg --picture strip

check: $(VENV)/.dev ## Check format, lint, types, import rules and conventions
	@echo "ruff format" && $(PY) -m ruff format --check --quiet --output-format concise . || { echo "not formatted; run: make fix" >&2; exit 1; }
	@echo "ruff check" && $(PY) -m ruff check --quiet .
	@echo "pyright" && $(PY) -m pyright
	@echo "lint-imports" && $(VENV)/bin/lint-imports --no-logo
	@echo "conventions" && $(PYTEST) tests/test_conventions.py

fix: $(VENV)/.dev ## Format, and repair what the linter can
	@$(PY) -m ruff check --fix --quiet . ; $(PY) -m ruff format .

clean: ## Remove .venv and everything the tools left behind
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: touched only when a step succeeded, so a broken or interrupted one is done again.

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "error: no '$(PYTHON)' on this machine; $(OTHER)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: needs Python 3.11 or newer, '$(PYTHON)' is older; $(OTHER)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing the runtime (torch is large: minutes, the first time)"
	@$(PIP) hatchling hatch-fancy-pypi-readme editables
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "installing what the tests need"
	@$(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing what the checks need"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
