# Inside an active environment everything runs there; otherwise in .venv, made when missing or older than the pins.
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
BIN := $(abspath $(ENV))/bin
READY := $(ENV)/.ultramem-ready
PYTHON ?= python3
RUN_DIR ?= runs/quickstart
PROCESSES ?= 4
PYTEST_WORKERS ?= 2

export PYTHONWARNINGS ?= ignore
# every program that a test starts would compile our code anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env quickstart test test-fast test-deep coverage check format clean

env: $(READY)

# the exact pins are for .venv alone: an active environment may hold the torch that fits its GPU
ifeq ($(ENV),.venv)
REQUESTS := -c constraints.txt torch==2.13.0 -e '.[dev,gpu]'
else
REQUESTS := -e '.[dev]'
endif

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(ENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(REQUESTS)
	touch $@

# four processes on the CPU, also where there are GPUs, which may be fewer
quickstart: export CUDA_VISIBLE_DEVICES =
quickstart: $(READY)
	$(BIN)/ultramem data prepare --source quickstart
	$(BIN)/ultramem plan quickstart --cluster local:$(PROCESSES)
	$(BIN)/ultramem pretrain quickstart --run-dir $(RUN_DIR) --local $(PROCESSES)
	$(BIN)/ultramem generate --run-dir $(RUN_DIR) --prompt "The capital of France" --temperature 0.5

# --dist: how pytest-xdist asks tests/order.py, which hands out whole files, the longest first
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow"

# before a release: many more examples, steps and cases
test-deep: export ULTRAMEM_TEST_DEPTH = deep
test-deep: $(READY)
	$(PYTEST) --timeout=7200

coverage: $(READY)
	$(BIN)/python tools/coverage_of_tests

check: $(READY)
	PATH="$(BIN):$$PATH" tools/check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
