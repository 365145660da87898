# The targets that people and CI call. Everything is installed into .venv; nothing else is touched.

# The first CPython of at least 3.11 that is there, unless PYTHON says which.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# How many processes run tests. Most tests wait for processes of their own, so this may be more than there are processors.
JOBS ?= 4
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test chaos test-all-pythons check bench docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.installed-examples ## the main job: a census of the standard library, in parallel and serially
	$(BIN)/pynenc run examples/census/census.py

test: $(VENV)/.installed-test ## run the tests
	$(BIN)/python -m pytest -n $(JOBS)

chaos: $(VENV)/.installed-test ## kill and stop everything at random for SECONDS (60) with SEED (drawn), and check the books
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

test-all-pythons: ## run the tests on every CPython 3.11 to 3.13 of this machine
	.ci/test-all-pythons

check: $(VENV)/.installed-check docs ## linters, types, import contracts, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing examples
	$(BIN)/pyright --warnings --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	git diff --exit-code -- docs

bench: $(VENV)/.installed-bench ## measure against other executors
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed ## make the generated pages of docs/
	$(BIN)/python -m pynenc.conf.reference > docs/configuration.md
	$(BIN)/python -m pynenc.cli.render > docs/statuses.md

clean: ## remove what the targets made
	rm -rf $(VENV) .venvs build pynenc.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "pynenc needs CPython 3.11 or later: none was found; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) install $(COMPAT) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) install $(COMPAT) $(PIP_OPTIONS) --editable '.[$(if $(filter check,$*),check$(comma)examples$(comma)test,$*)]'
	@$(COMPILE)
	@touch $@ $(VENV)/.installed $(if $(filter check,$*),$(VENV)/.installed-examples $(VENV)/.installed-test)

comma := ,
# As an installation that is not editable does: else every process compiles what it imports where no bytecode may be written.
COMPILE := $(BIN)/python -c 'import compileall, rich; [compileall.compile_dir(one, quiet=2) for one in ("pynenc", "tests", *rich.__path__)]' || true
# A path entry rather than an import hook: the hook costs every new interpreter 10 ms.
COMPAT := --config-settings editable_mode=compat
