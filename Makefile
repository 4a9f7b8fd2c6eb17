# Verbs of this project. Everything they need is installed into .venv by themselves; `make` alone lists them.
#
#   PYTHON=/path/to/python3.12 make demo    uses that Python (3.11 or 3.12) instead of the first one found

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
LOCAL := $(VENV)/.installed-local
DEV := $(VENV)/.installed-dev
TRACKS := .venv-tracks/.installed
CODE := gateway preprocess_worker inference_worker shared visionmesh deploy tests $(wildcard benchmarks)

.PHONY: help demo up test test-slow test-tracks lint format lock clean bench chaos growth profile overload fuzz
.DEFAULT_GOAL := help

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(LOCAL) ## Start the mesh, find the objects in three photos, draw them, stop the mesh
	@$(BIN)/visionmesh demo

up: $(LOCAL) ## Run the mesh here until Ctrl-C
	@$(BIN)/visionmesh up

test: $(DEV) ## Run all tests, on a real Valkey and a real Triton
	@$(BIN)/python -m pytest -q -m "not slow and not tracks"

test-slow: $(DEV) ## Run the tests that install packages or take minutes
	@$(BIN)/python -m pytest -q -m slow

test-tracks: $(TRACKS) ## Run the tests of tracks A and D, with PyTorch and DALI in .venv-tracks
	@.venv-tracks/bin/python -m pytest -q -m tracks

lint: $(DEV) ## Check style, types and the direction of imports
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

format: $(DEV) ## Format the code
	@$(BIN)/ruff check --fix --quiet $(CODE) || true
	@$(BIN)/ruff format $(CODE)

chaos: $(DEV) ## Kill, stop and cut everything under load, and count what is lost
	@$(BIN)/python -m tests.chaos

fuzz: $(DEV) ## Feed broken pictures, 20,000 mutants among them, to the decoders and to the mesh
	@$(BIN)/python -m tests.fuzz

overload: $(DEV) ## Offer three times what the mesh can do for three minutes, on shared cores and apart, and see what it does
	@$(BIN)/python -m tests.overload

bench: $(DEV) ## Measure the mesh beside its neighbours, and print where it wins and where not
	@$(BIN)/python -m benchmarks.ladder

growth: $(DEV) ## Measure what a picture costs as queues, results, clients, workers and files grow
	@$(BIN)/python -m benchmarks.growth

profile: $(DEV) ## Draw flame graphs of gateway and workers under load into docs/flames
	@$(BIN)/python -m benchmarks.profile

lock: $(DEV) ## Write constraints.txt anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --upgrade pyproject.toml --extra dev --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.tmp
	@sed -e "/sys_platform == 'win32'/d" -e "/python_full_version >= '3.13'/d" -e "s/ ; python_full_version < '3.13'//" \
		constraints.tmp > constraints.txt
	@rm constraints.tmp

clean: ## Remove what was installed and written
	rm -rf $(VENV) .venv-tracks demo bench-results build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage

$(LOCAL): pyproject.toml constraints.txt | $(BIN)/python
	@deploy/install.sh local && touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@deploy/install.sh dev && touch $@ $(LOCAL)

# A folder of its own: the mesh and its other tests must do without these extras. pip, for uv sees none of the wheels that pip
# may be configured to find beside the index.
$(TRACKS): pyproject.toml constraints.txt constraints-tracks.txt
	@[ -x .venv-tracks/bin/python ] || deploy/find-python.sh .venv-tracks
	@deploy/install.sh dev .venv-tracks
	@echo "Installing PyTorch and DALI into .venv-tracks (once; half a gigabyte) ..."
	@.venv-tracks/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint constraints-tracks.txt --editable ".[torch,dali]" && touch $@

$(BIN)/python:
	@deploy/find-python.sh $(VENV)
