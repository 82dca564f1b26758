# Each target sets up what it needs: a virtual environment in .venv, installed once per change of the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One worker a core, each with the neighboring tests of one file, which share what they set up.
PRESET ?= offline
PYTEST := pytest -n auto --maxprocesses 8 --dist worksteal
# Stages and DVC find `python` and `dvc` on the PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# What would not fit a screen: what is behind a score, further counts, and hashes of what a stage has read or depends on.
UNCOMPARED := .*_(low|high|baseline|stored|effective|bytes|error|difference)$$|artifacts|reports/(tokenize|factorize_init|train)/.*
UNCOMPARED := $(UNCOMPARED)|(rows|train|validation|test)_.*|energy_.*|error$$|(best|last)_.*|steps$$|(data|models|params.yaml)$$
# A notice at every build that another generator will follow this one.
export NO_MKDOCS_2_WARNING := 1

.PHONY: repro experiments plots test types check audit torture docs arena bench bench-factorize \
	capabilities clean

## repro: fine-tune the default model on the default data: check, tokenize, check-model, factorize-init, train, evaluate
repro: $(READY)
	python -m pipeline.params
	dvc repro
	@dvc metrics show --md reports/evaluate/metrics.json

## experiments: those of DVC beside the committed run: scores, trained parameters, and the values that differ
experiments: $(READY)
	@if [ -n "$$(dvc exp list --name-only)" ]; then dvc exp show --only-changed --drop '$(UNCOMPARED)'; \
	else echo "no experiments since the last commit; to run one: dvc exp run -S adapter=lora"; fi

## plots: all plots as one page, dvc_plots/index.html, which needs no connection
plots: $(READY)
	dvc plots show

## test: the whole test suite
test: $(READY)
	$(PYTEST)

## types: mypy and import-linter
types: $(READY)
	mypy
	lint-imports

## check: the test suite, and what keeps the code in shape: ruff, mypy, import-linter
check: $(READY)
	ruff check .
	ruff format --check .
	$(MAKE) --jobs 2 types test # mypy has one core: the suite does not wait for it

## audit: known vulnerabilities of the pinned versions; exit status 1 if there are any, or if nobody can be asked
audit: $(READY)
	.ci/audit

## torture: many kills, mistakes, hostile adapters, full disks, processes and experiments at once; an hour on two cores, goes on where it was stopped
torture: $(READY)
	python -m tests.torture

## docs: the documentation, in build/site/index.html; first what is made of code and reports, the picture and tables of figures
docs: $(READY)
	python docs/picture.py
	python -m docs.tables
	python -m mkdocs build

## arena: every method on every task of a preset: make arena PRESET=offline; goes on where it was stopped
arena: $(READY)
	python -m pipeline.arena $(PRESET)

## bench: what an adapter costs in time and memory, beside other methods
bench: $(READY)
	python -m benchmarks.speed

## bench-factorize: time and memory of the initializations beside torch's SVD
bench-factorize: $(READY)
	python -m benchmarks.factorize

## capabilities: which of PEFT's features LSR and other methods have, in docs/reference/capabilities.md
capabilities: $(READY)
	python -m tests.capabilities

# Python compiles a module when it is first imported; pip would compile five times as many, on one core.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --no-compile --constraint constraints.txt --editable '.[pipeline,plots,demo,docs,dev]'
	python -m pipeline.plots_page
	@touch $@

## clean: remove the environment and what is not tracked by Git; DVC's cache stays
clean:
	rm -rf $(VENV) .checkpoints *.egg-info .mypy_cache .pytest_cache .ruff_cache
