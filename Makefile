# Every target sets up what it needs: `make demo` or `make test` may be the first command in a fresh clone.
SHELL := /bin/sh
BIN := .venv/bin
STAMP := .venv/.installed
LEDGER = erasure-runs/demo-$(shell date -u +%Y%m%d-%H%M%S)
# The first Python >= 3.11 that can make a virtual environment; `make PYTHON=/path/to/python setup` picks one.
FIND_PYTHON = for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; p=; done; \
	test -n "$$p" || { echo "setup: expected Python 3.11 or later with venv, got none. Install it (Debian: apt install python3-venv)." >&2; exit 2; }

.PHONY: help setup demo app space test check format tables clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' Makefile

setup: $(STAMP)  ## make .venv and install what a developer needs

$(STAMP): pyproject.toml constraints.txt
	@$(FIND_PYTHON); echo "setup: $$p -> .venv, a few minutes the first time"; "$$p" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## remove three concepts from the tiny world, one after another
	$(BIN)/erasure remove cat neon gun --ledger $(LEDGER)

app: $(STAMP)  ## start the web demo
	$(BIN)/erasure app

space: $(STAMP)  ## SPACE=owner/name: make the folder of a Hugging Face Space, build/space
	rm -rf build/space && $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/space .
	cp app.py build/space && $(BIN)/python -m erasure.demo.server.space "$(SPACE)" build/space

test: $(STAMP)  ## run the tests: offline, on the CPU
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## format, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	rm -rf build/lib build/types && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-compile --target build/types .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## format, and mend what the linter can
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

tables: $(STAMP)  ## build the tables of the README and of docs/ from results/
	$(BIN)/python -m docs.build_tables

clean:  ## delete what setup and check made
	rm -rf .venv build erasure.egg-info .pytest_cache .ruff_cache .hypothesis
