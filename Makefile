# One entry for everything; `make help` explains. Recipes are short: what they do is in the modules they call.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

## —— The two commands of a newcomer ——————————————————————————————

demo: setup guest ## a Linux VM moves esx01 → esx02 → esx03 → esx01 while it runs; writes out/demo.json
	$(BIN)/python -m demo

storage-demo: setup guest ## a Linux VM and its disk move esx01 → esx02 while it writes and is pinged; writes out/storage.json
	$(BIN)/python -m demo.storage_demonstration

test: setup guest ## the whole test suite: unit, integration, end to end with QEMU and Linux
	$(BIN)/python -m pytest tests $(PYTEST_ARGS)

## —— The local cluster ———————————————————————————————————————————

up: setup guest ## start vpxd and three hosts as processes; `.venv/bin/vpx` then talks to them
	$(BIN)/python -m demo.local_cluster up

down: ## stop the local cluster and everything that runs on it
	$(BIN)/python -m demo.local_cluster down

status: ## what the local cluster runs
	$(BIN)/python -m demo.local_cluster status

## —— The docker-compose cluster ——————————————————————————————————

compose-demo: setup guest compose-packages ## build the images, start vpxd and three hosts as containers, move a VM through them, take all down
	$(BIN)/python -m demo.compose

## —— Working on the code —————————————————————————————————————————

check: setup ## format, lint, types, tests of style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/style

fix: setup ## mend what format and lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: setup ## unit tests only (seconds)
	$(BIN)/python -m pytest tests/unit tests/wire tests/style $(PYTEST_ARGS)

integration: setup guest ## real daemons, fake guest
	$(BIN)/python -m pytest tests/integration $(PYTEST_ARGS)

e2e: setup guest ## real QEMU, real Linux
	$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

proto: $(VENV)/.installed ## generate the Python stubs of proto/
	$(BIN)/python proto/generate.py

lock: $(VENV)/.installed ## resolve the dependencies anew into requirements*.lock
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

## —— Set-up (the targets above do it by themselves) ——————————————

setup: system $(VENV)/.installed ## system packages where missing, virtual environment, locked dependencies, proto stubs
	@$(BIN)/python proto/generate.py

system: ## install QEMU, a C compiler and Python's venv from the system's packages where they are missing
	@setup/system-packages.sh

compose-packages:
	@setup/system-packages.sh compose

guest: setup ## build the small Linux guest (out/guest) if it isn't there
	@$(BIN)/python -m images.build

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

clean: ## remove what was built, and the virtual environment
	rm -rf out $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find proto -name '*_pb2*' -delete

help: ## this list
	@awk -F ':.*## ' '/^## /{print "\n" substr($$0, 4)} /^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: compose-packages demo storage-demo test up down status compose-demo check fix unit integration e2e proto lock setup system guest clean help
