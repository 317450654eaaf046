# The few commands there are. `make` lists them. Another torch build: make run TORCH="torch==2.13.0 --index-url URL"
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
TORCH   ?= torch==2.13.0
PROFILE ?=
SET     ?=
SEED    ?= 1
WORKERS ?=
CASES   ?= 20000
SUITE   ?=
KILLS   ?= 30
MINUTES ?= 10
BIN     := .venv/bin
LIBRARY := pruneonce/deployment/kernels.so
# Each setting as it was typed: neither make nor the shell reads the $, |, \, ( and * of a regular expression. Blanks part
# them: give a value with a blank to `python -m flows.compress --set`.
ARGS     = $(if $(PROFILE),--profile $(PROFILE)) $(if $(WORKERS),--workers) $(foreach s,$(value SET),--set '$(subst ','\'',$(s))')

export DO_NOT_TRACK ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install run study patterns test check lint types suite cluster docs fuzz faults audit bench clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

install: .venv/installed $(LIBRARY)  ## create .venv with the exact versions of requirements.lock, build the sparse kernels

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps --requirement requirements.lock
	@$(BIN)/python -m compileall -qq -j 0 $(CURDIR)/.venv/lib || true  # as pip does, but on all cores; some files never compile
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Without it everything else works: the command says in one line why it is missing and what to do.
$(LIBRARY): $(wildcard kernels/*.[ch]) kernels/build.py | .venv/installed
	@$(BIN)/python -m kernels.build --install-zig || true

run: install  ## run the pipeline: params.yaml as it stands, or PROFILE=tiny, SET="sparsify.sparsity=0.9", WORKERS=1
	$(BIN)/python -m flows.compress $(ARGS)

study: install  ## what does pruning once buy? Every variant on every task, over the pipeline's outs; PROFILE and SET as above
	$(BIN)/python -m flows.compress --pipeline study $(ARGS)

patterns: install  ## what do zeros in blocks cost, and what do they buy? The same, for every pattern, sparsity and task
	$(BIN)/python -m flows.compress --pipeline patterns $(ARGS)

check: lint types  ## format, lint, types, unit and property tests
	$(BIN)/pytest --numprocesses 2 tests/unit tests/property

# --jobs 2: the types beside the tests.
test: lint types suite  ## everything that CI runs: check, integration, end-to-end and kernel tests

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

# One start for all of them, the files that take longest first: see LONG in tests/conftest.py.
suite: install
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests

fuzz: install  ## damaged input by the thousand, each a result or one clear error; SEED=2 for others, CASES=100000, MINUTES=60
	$(BIN)/python -m tests.fuzz --seed $(SEED) --cases $(CASES)
	$(BIN)/python -m tests.fuzz.coverage_guided --seed $(SEED) --minutes $(MINUTES)

faults: install  ## what kills, full disks, lost servers and a jumping clock cost; SUITE="kills disk" for some, KILLS=10 for fewer
	$(BIN)/python -m tests.faults $(SUITE) --seed $(SEED) --kills $(KILLS)

cluster: install  ## one run on three workers with four tasks, for real: PostgreSQL, S3, a worker that is killed; minutes
	CLUSTER_TASKS=4 CLUSTER_WORKERS=3 $(BIN)/pytest -s tests/e2e/test_cluster.py tests/e2e/test_machines.py

# pip-audit is installed apart, because what it needs is no part of what it audits. Without a network the program says so.
audit: install  ## known vulnerabilities of the exact versions; without a network: ADVISORIES=FOLDER, a copy of a database
	@test -x .venv/audit/bin/pip-audit || test -n "$(ADVISORIES)" || { $(PYTHON) -m venv .venv/audit && \
		.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1; } || true
	$(BIN)/python -m tests.audit $(if $(ADVISORIES),--advisories '$(subst ','\'',$(ADVISORIES))')

docs: install  ## write what commands print into README.md and docs/
	$(BIN)/python -m docs.write

bench: install  ## measure speed, memory, size and overhead against their bars; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks

clean:  ## remove the virtual environment, the built kernels and scratch files; results, MLflow's runs and DVC's cache stay
	rm -rf .venv $(LIBRARY) .pruneonce/scratch .pytest_cache .mypy_cache .ruff_cache
