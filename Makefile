# Every target begins with a complete environment in .venv, made from a fresh clone with nothing by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PYTHONUTF8 = 1

.PHONY: help setup demo run test check bench drill docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/'

setup: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=python3.12 make setup)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[compute,demo,dev]" "torch==2.13.0"
	@touch $@

demo: setup ## the main job, end to end, offline
	$(BIN)/kargah demo

run: setup ## serve on http://127.0.0.1:8765
	$(BIN)/kargah serve

test: setup ## every test
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

check: setup ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## docs/errors.md, made from the code
	$(BIN)/python -m kargah.app.error_book --write docs/errors.md

bench: setup ## measurements, each with a peer beside it
	$(BIN)/python -m bench

drill: setup ## 100 kills of server and training programs over real runs
	$(BIN)/python -m bench.drill --kills 100

clean: ## remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache dist build
