# Each target sets up what it needs and no more: a virtual environment in .venv, and in it the extras that the target
# uses, installed once per change of the pinned versions.
PYTHON ?= python3
# Or `uv pip`, which takes a quarter of the processor time, but reads no settings of pip's.
PIP ?= pip
TORCH ?=
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.with-pipeline,demo
PRESET ?= offline
# What `make browser` shows: a run with tenants has made a bank.
ADAPTER ?= $(if $(wildcard artifacts/bank/bank.safetensors),artifacts/bank,artifacts/adapter)
ARENA := $(VENV)/.with-pipeline,$(if $(filter base,$(PRESET)),base-model,demo)
PLOTS := $(VENV)/.with-pipeline,demo,plots
STAGES := tokenize factorize-init train evaluate
RESTORED := params.yaml dvc.lock $(addprefix reports/,tokenize factorize_init train evaluate)
ONNX := $(VENV)/.with-pipeline,demo,onnx
ALL := $(VENV)/.with-pipeline,demo,plots,server,smollm2,onnx,docs,dev
# One worker a core. A file is run by one of them: its tests share what they set up.
PYTEST := pytest -n auto --maxprocesses 8 --dist loadfile
# Stages and DVC find `python` and `dvc` on the PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A module is compiled when it is first imported, also where the environment forbids it, as images of containers do: each
# stage is a process, which would compile all modules again, for some 6 seconds of processor.
unexport PYTHONDONTWRITEBYTECODE
# A notice at every build that another generator will follow this one.
export NO_MKDOCS_2_WARNING := 1

ifneq ($(TORCH),$(filter cpu,$(TORCH)))
$(error TORCH: must be cpu, or be left out for the build of the package index, got $(TORCH))
endif

.PHONY: help setup repro experiments undo plots test types check nightly audit docs arena bench browser capabilities clean

## help: list the targets
help:
	@sed -n 's/^## //p' Makefile

## repro: fine-tune the default model on the default data: tokenize, factorize-init, train, evaluate; with TORCH=cpu,
##        this and every target that creates .venv installs torch without CUDA
repro: $(RUN)
	@echo 'repro: step 1 of 5, check params.yaml and the tables'
	python -m pipeline.check
	@echo 'repro: steps 2 to 5, tokenize, factorize-init, train, which takes most of the time, and evaluate'
	dvc repro

## experiments: list DVC's experiments and the committed run with score, number of examples read, trained parameters
##              and the parameters that differ; COMMITS=--all-commits lists those of all commits
experiments: $(RUN)
	@python -m pipeline.experiments $(COMMITS)

## undo: restore params.yaml, dvc.lock, reports/ and artifacts/ of the committed run, and nothing else; changes nothing
##       if the cache lacks its outputs, as where it was made on another machine
undo: $(RUN)
	@mkdir -p .dvc/tmp && tar -cf .dvc/tmp/undo.tar $(wildcard $(RESTORED))
	git checkout HEAD -- $(RESTORED)
	@dvc checkout --force $(STAGES) || { \
	    tar -xf .dvc/tmp/undo.tar; \
	    dvc checkout --force --quiet $(STAGES); \
	    echo 'undo: outputs of the committed run are not in the cache: nothing is changed; make repro trains it anew' >&2; \
	    exit 1; \
	}

## plots: draw all plots on one page, dvc_plots/index.html, which opens offline
plots: $(PLOTS)
	python -m docs.plots
	dvc plots show --html-template dvc_plots/template.html

## test: run the test suite
test: $(ALL)
	$(PYTEST)

## types: run mypy and import-linter
types: $(ALL)
	mypy
	lint-imports

## check: run ruff, mypy, import-linter and the test suite, as CI does
check: $(ALL)
	ruff check .
	ruff format --check .
	$(MAKE) --jobs 2 types test # mypy has one core: the suite does not wait for it

## nightly: run all tests, also the slow ones: kills, several processes, every page, a browser, and more random inputs
nightly: $(ALL)
	$(PYTEST) -m '' --hypothesis-profile nightly

## audit: list known vulnerabilities of the pinned versions; exit status 1 if there are any or the index is unreachable
audit: $(ALL)
	.ci/audit

## docs: build the documentation, build/site/index.html
docs: $(ALL)
	python -m mkdocs build

## arena: run the benchmark PRESET (default: offline); an interrupted one resumes
arena: $(ARENA)
	python -m pipeline.arena $(PRESET)

## bench: measure the time and memory that adapters take, compared with PEFT's LoRA
bench: $(ALL)
	python -m benchmarks.speed

## browser: build a page that classifies texts with the last adapter or bank, or ADAPTER, in build/browser; needs npm
browser: $(ONNX)
	lsr export $(ADAPTER) --to onnx -o build/onnx --force
	python examples/browser/build.py build/onnx -o build/browser

## capabilities: test PEFT's features with LSR and other methods, and write docs/reference/capabilities.md
capabilities: $(ALL)
	python -m docs.capabilities

## setup: create .venv with all extras
setup: $(ALL)

# The pip of Python 3.11 takes twice the processor time of a new one for what follows.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --upgrade pip

# Sizes are those of repro, by `uv lock` of its packages: other targets fetch a few hundred MB more.
define WHAT_PIP_FETCHES
	if ls $(VENV)/lib/python3*/site-packages/torch/version.py > /dev/null 2>&1; then \
	    echo 'setup: torch is in $(VENV) already and is taken as it is; pip fetches what else $* needs'; \
	elif [ -n '$(TORCH)' ]; then \
	    echo 'setup: pip fetches what $* needs, some 450 MB, 160 MB of it torch without CUDA'; \
	else \
	    echo 'setup: pip fetches what $* needs; on Linux some 3 GB, 2.7 GB of it torch with CUDA'; \
	    echo 'setup: without a GPU, stop this and type: make $(MAKECMDGOALS) TORCH=cpu'; \
	    echo 'setup: that fetches some 450 MB, with torch without CUDA from $(CPU_INDEX)'; \
	fi
endef

# Python compiles a module when it is first imported; pip would compile five times as many, on one core.
$(VENV)/.with-%: pyproject.toml constraints.txt | $(BIN)/pip
	@$(WHAT_PIP_FETCHES)
	$(if $(TORCH),$(PIP) install --no-compile --no-deps --constraint constraints.txt --index-url $(CPU_INDEX) torch)
	$(PIP) install --no-compile --constraint constraints.txt --editable '.[$*]'
	@touch '$@'

## clean: remove .venv, checkpoints and caches of tools; DVC's cache stays
clean:
	rm -rf $(VENV) .checkpoints *.egg-info .mypy_cache .pytest_cache .ruff_cache
