# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs; a step that was done and whose inputs are the same is not repeated
# (.ci/once). On a fresh machine this takes git, make, Python 3.11 or newer, and root.

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
.PHONY: help demo bench conformance test setup packages unit e2e lint check-c format docs build upgrade clean distclean

# The Python that .venv is made with; empty: the first one that is new enough.
PYTHON ?=
BIN := .venv/bin

# What is tested is what is installed: without this, Python would look in the working directory first and find
# the source tree there. docs/development.md has the whole story.
export PYTHONSAFEPATH := 1

SOURCES := lab guest_agent ivshmem meson.build pyproject.toml

help:  ## List the targets.
	@echo "hyperheap: a QEMU lab whose guests' TCP streams move through shared memory"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*  ## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: setup  ## Set everything up and see programs talk through memory.
	@$(BIN)/lab demo examples/hello.yaml

bench: setup  ## Measure a lab; needs a machine that does nothing else.
	@$(BIN)/python tests/bench/guests.py examples/hello.yaml

# SUITES="nginx test_ssl" runs only those; ARGS=--json prints the report for programs.
conformance: setup  ## Compare other people's tests with and without the shim (25 minutes).
	@.ci/packages tests/conformance/packages.txt
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m conformance $(ARGS) $(SUITES)

test: lint check-c unit e2e  ## Set everything up and run every check and test.

setup: packages  ## Install Debian packages, the Python environment and the project.
	@.ci/once environment pyproject.toml .ci/constraints.txt .ci/venv -- .ci/venv $(PYTHON)
	@.ci/once install $(SOURCES) .stamps/environment .ci/install -- .ci/install

packages:
	@.ci/packages

unit: setup  ## Run the unit tests (no root, seconds).
	@$(BIN)/python -m pytest -q --ignore=tests/e2e tests

e2e: setup  ## Run the tests that drive real guests.
	@$(BIN)/python -m pytest -v -o timeout=900 tests/e2e

lint: setup  ## Run the linters and the type checker.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "make: some files are not formatted; to mend it: make format" >&2; exit 1; }
	@$(BIN)/mypy
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/ansible-lint --offline -q playbooks

check-c: setup  ## Compile with gcc and clang, every warning an error.
	@.ci/check-c

format: setup  ## Format the Python files.
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

docs: setup  ## Generate docs/topology.md from the models.
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m lab.topology_reference docs/topology.md

build: setup  ## Build the C parts into build/, for work in the tree.
	@test -f build/build.ninja || $(BIN)/meson setup build >/dev/null
	@$(BIN)/ninja -C build --quiet

upgrade: setup  ## Renew .ci/constraints.txt with the newest versions.
	@$(BIN)/python -m pip install -q --upgrade --requirement .stamps/requirements.txt
	@{ echo "# The versions that CI tests with. To renew: make upgrade"; \
		$(BIN)/python -m pip freeze --exclude hyperheap --exclude pip --exclude setuptools; } >.ci/constraints.txt

clean:  ## Remove what was built here (not the images in /var/cache/hyperheap).
	rm -rf build build-check .stamps .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## Remove the Python environment too.
	rm -rf .venv
