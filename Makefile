# `make train` trains and evaluates on embedded real images; `make test` passes the tests; `make
# reproduce` puts the tables of docs/results.md anew, `make ladder` those of docs/ladder.md, `make bench`
# those of docs/benchmarks.md (OFFICIAL_CODE=PATH compares with a copy of the published code); `make
# compile TARGET=v5p:2x2x1` compiles for a TPU, or TARGET=h100:1 for a GPU, without having it; `make docs`
# builds the site into site/ (NOTEBOOKS=no: without running its notebooks). All
# install into .venv first, at the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# For `make test-oldest` and `make test-newest`; TESTS=PATHS runs only those.
OLDEST := .venv-oldest
NEWEST := .venv-newest
TESTS ?=

.PHONY: install train reproduce ladder bench compile docs test test-thorough test-oldest test-newest check lint format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vdm_jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

train: install
	$(BIN)/python -m experiments.digits --workdir=workdirs/digits

reproduce: install
	$(BIN)/python -m experiments.paper_tables --workdir=workdirs/reproduce

ladder: install
	$(BIN)/python -m experiments.ladder --workdir=workdirs/ladder

bench: install
	$(BIN)/python -m experiments.benchmarks.speed --workdir=workdirs/bench $(if $(OFFICIAL_CODE),--official-code=$(OFFICIAL_CODE))

# What TARGET's compiler needs goes into an environment of its own, 5 GB of it for a GPU.
TARGET ?= v5p:1x1x1
ARGS ?=
KIND := $(if $(filter h%,$(TARGET)),cuda,tpu)
COMPILE := .venv-compile-$(KIND)
DISK_GB := $(if $(filter h%,$(TARGET)),12,3)

compile: $(COMPILE)/installed
	$(COMPILE)/bin/python -m experiments.benchmarks.compile --target=$(TARGET) \
	  $(if $(OFFICIAL_CODE),--official-code=$(OFFICIAL_CODE)) $(ARGS)

$(COMPILE)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < $(DISK_GB) * 10**9)' || { \
	  echo "make compile TARGET=$(TARGET) needs $(DISK_GB) GB of free disk for its compiler: make space here"; exit 2; }
	$(PYTHON) -m venv $(COMPILE)
	$(COMPILE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,$(KIND)]'
	@touch $@

NOTEBOOKS ?= yes

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m mkdocs build --strict

$(VENV)/docs: $(STAMP) docs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r docs/requirements.txt
	@touch $@

# Most of the time of the tests is compiling programs that run once: here they are compiled with few
# optimisations, in less than half the time.
test: install
	VDM_JAX_TESTS_XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
	    --xla_cpu_parallel_codegen_split_count=1" \
	  $(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/thorough

# The rest: several processes, kills, full disks, fuzzing, whole trainings; compiled as users'
# programs are.
test-thorough: install $(VENV)/docs
	VDM_JAX_TESTS_DEVICES=8 $(BIN)/python -m pytest -n 2 --dist loadfile tests/thorough

# Each direct dependency at the lower bound of pyproject.toml, the others as they go with it.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

$(OLDEST)/installed: pyproject.toml
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

# The newest of everything, on this day: installed anew each time.
test-newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info site
