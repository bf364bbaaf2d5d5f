# Needs make and Python 3.11 or newer, nothing else. The environment is made in .venv on first use
# and again when a lock file or pyproject.toml changes.
#   make demo PYTHON=python3.12     choose the interpreter (else the newest of 3.13, 3.12, 3.11)
#   make test ARGS="-k lease -x"    pass options to pytest
#   TEST_STORE=s3 make test         run all of it on a real S3 server
#   make bench ARGS="..."           pass options to the benchmarks

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test nightly coverage check format bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## See the whole life of a pack in a minute (DEMO_TTL, DEMO_REPO, DEMO_STORE, KEEP)
	@$(BIN)/mpack-gateway demo $(ARGS)

test: $(VENV)/.test ## Run every test, against a PostgreSQL of its own
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m pytest -q -n 3 -m "not apart"
	@$(BIN)/python -m pytest -q -n 3 --maxschedchunk=1 -m apart
ifneq ($(TEST_STORE),s3)
	@TEST_STORE=s3 $(BIN)/python -m pytest -q -n 3 --maxschedchunk=1 -m both_stores
endif
else
	@$(BIN)/python -m pytest $(ARGS)
endif

nightly: $(VENV)/.test ## Run what takes hours, and keep what it found (ARGS="kills --seed 7"; ARGS=--list)
	@$(BIN)/python -m tests.nightly $(ARGS)

coverage: $(VENV)/.test ## Run every test and report the branches that none of them took
	@$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

check: $(VENV)/.check ## Lint, check the format, the types and the import contracts
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

format: $(VENV)/.check ## Format the code and mend what ruff can mend
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

bench: $(VENV)/.test ## Run the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

lock: ## Resolve requirements/*.txt anew, to releases at least a week old (UPGRADE=1: move the pins)
	@PYTHON="$(PYTHON)" UPGRADE="$(UPGRADE)" requirements/lock.sh

clean: ## Remove the environment, caches and reports; data folders stay
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* coverage.xml
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each lock file; the lock files agree on every version, so their order is free.
$(VENV)/.run $(VENV)/.test $(VENV)/.check $(VENV)/.bench: $(VENV)/.%: requirements/%.txt pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install.sh $(VENV) $<
	@touch $@
