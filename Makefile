# Everything runs in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgekit-setup

.PHONY: setup demo test test-optimum lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml tools/demo-packages.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# The CPU build where pip can find one; the plain package of most platforms otherwise.
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "torch==2.13.0+cpu" || $(BIN)/pip install --quiet "torch>=2.10"
	$(BIN)/pip install --quiet -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps -r tools/demo-packages.txt
	touch $(STAMP)

demo: setup
	$(BIN)/python -m tools.demo

test: setup
	$(BIN)/python -m pytest

# optimum-onnx needs transformers 4.57, so its tests run in an environment of their own.
test-optimum:
	test -x .venv-optimum/bin/python || $(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -c "import torch" 2>/dev/null || .venv-optimum/bin/pip install --quiet "torch==2.13.0+cpu" || .venv-optimum/bin/pip install --quiet "torch>=2.10"
	.venv-optimum/bin/python -c "import optimum.onnxruntime, pytest" 2>/dev/null || .venv-optimum/bin/pip install --quiet -e ".[optimum]" "pytest>=8"
	.venv-optimum/bin/python -m pytest tests/optimum

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.decoder_peers

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
