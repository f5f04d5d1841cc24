# Everything runs in .venv, .venv-optimum and build; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.edgekit-setup
OPTIMUM := .venv-optimum/bin
OPTIMUM_STAMP := .venv-optimum/.edgekit-setup
ORT_ANDROID := build/ort-android/aar.sha256
NODE := build/node/.installed
# One test file more at a time than there are processors, because some wait for devices and downloads; WORKERS=0 runs one
# after the other.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup kernels demo check quick test test-optimum lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml tools/demo-packages.txt tools/make_venv.sh tools/fetch_fashion_mnist.sh
	sh tools/make_venv.sh $(PYTHON) .venv
	$(BIN)/pip install --quiet -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps -r tools/demo-packages.txt
	sh tools/fetch_fashion_mnist.sh
	@touch $(STAMP)

# optimum-onnx needs transformers 4.57, so its tests run in an environment of their own; the decoders run on 4.57 there too.
$(OPTIMUM_STAMP): pyproject.toml tools/make_venv.sh
	sh tools/make_venv.sh $(PYTHON) .venv-optimum
	$(OPTIMUM)/pip install --quiet -e ".[optimum]" "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6.100"
	@touch $(OPTIMUM_STAMP)

# The operator library for all eight systems, about 12 s; a library that is newer than its sources is kept. Installing
# builds it too: this is for who edits edgekit/kernels.
kernels: setup
	@$(BIN)/python -m tools.build_kernels --all

# Headers for a test of the kernels, and what Android's libraries are run against: without npm those tests are skipped.
$(ORT_ANDROID): $(STAMP) tools/fetch_ort_android.py
	-$(BIN)/python -m tools.fetch_ort_android

# Other runtimes that bundles are run in. Their install scripts fetch code for GPUs only; without npm those tests are skipped.
$(NODE): tests/node/package.json tests/node/package-lock.json
	mkdir -p $(@D) && cp $^ $(@D)
	-cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund --silent && touch $(@F)

demo: setup kernels
	$(BIN)/python -m tools.demo

# What to run before a commit: at most 3 minutes on two cores.
check: setup kernels
	@$(MAKE) --no-print-directory --jobs=2 lint quick

quick:
	$(BIN)/python $(PYTEST) tests/smoke tests/unit

# Everything: at most 15 minutes on two cores.
test: setup kernels $(ORT_ANDROID) $(NODE)
	$(BIN)/python $(PYTEST)

test-optimum: $(OPTIMUM_STAMP)
	$(OPTIMUM)/python $(PYTEST) tests/optimum tests/e2e/test_decoder_architectures.py

lint: setup
	$(BIN)/clang-format --dry-run --Werror edgekit/kernels/src/*.cpp edgekit/kernels/src/*.h edgekit/kernels/coding/*.cpp edgekit/kernels/coding/*.h edgekit/kernels/test/*.cpp edgekit/kernels/test/*.h
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup kernels
	$(BIN)/python -m benchmarks.llm.decoder_peers
	$(BIN)/python benchmarks/ops.py --output build/ops.json
	$(BIN)/python -m benchmarks.operators.memory
	$(BIN)/python -m benchmarks.operators.neighbour
	$(BIN)/python benchmarks/coding.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
