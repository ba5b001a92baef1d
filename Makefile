# The front door. `make help` lists the targets; nothing here needs root, Docker or a GPU.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo up doctor test test-agents check format lock wheel keys clean

BIN := .venv/bin
UV := .fulgurite/uv/bin/uv
SERVICES_EXTRAS := --extra gateway --extra otel --extra streams --extra learner --extra stack --extra archive --group dev --group agents
COMPILE := $(UV) pip compile --quiet --python-version 3.11 --custom-compile-command "make lock"

export TORCH_BACKEND PYTHON

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1mmake %-11s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  TORCH_BACKEND=cpu takes the slim torch from PyTorch's index; PYTHON=... names the interpreter (3.11 or 3.12)."
	@echo "  KAFKA_BOOTSTRAP_SERVERS, VLLM_BASE_URL and REDIS_URL replace the local engines of demo and up."

install: ## Make the two environments, .venv and .venv-serve. A second run installs nothing.
	@bash requirements/install.sh

demo: install ## A real agent learns to use a calculator: minutes, two CPU cores. ARGS="..." is passed on.
	@exec $(BIN)/python -m services.stack.demo $(ARGS)

up: install ## Start the whole stack for your own agent; Ctrl-C stops it, its topics stay. ARGS="--brokers 3" ...
	@exec $(BIN)/fulgurite up $(ARGS)

doctor: ## Say what this machine lacks, and what to do about it.
	@if [[ -x $(BIN)/fulgurite ]]; then $(BIN)/fulgurite doctor $(ARGS); else python3 services/cli/doctor.py $(ARGS); fi

test: install ## Every test: core (100% of branches), contract, services and integration against real engines.
	@$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

test-agents: install ## Quick-starts of agent frameworks, unmodified, against the real stack; installs each framework once.
	@$(BIN)/python -m pytest tests/agents -m agents $(ARGS)

check: install ## Lint, format, strict types, direction of imports.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --cache-dir .import_linter_cache

format: ## Format, and repair what lint can repair.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## Resolve requirements/*.txt anew from pyproject.toml.
	@$(COMPILE) --upgrade pyproject.toml $(SERVICES_EXTRAS) --output-file requirements/services.txt
	@$(COMPILE) --upgrade pyproject.toml --extra serve-cpu --override requirements/serve-overrides.txt --output-file requirements/serve.txt

wheel: install ## Build the wheel into dist/.
	@$(UV) build --wheel --quiet --out-dir dist

keys: ## Make the secrets for docker compose, .env.keys; existing ones are kept.
	@[[ -e .env.keys ]] || (umask 077; python3 -c "from secrets import token_urlsafe as t; print(f'FULGURITE_SIGNING_KEYS=k1:{t(32)}\nFULGURITE_ADMIN_KEY=fg-admin-{t(24)}\nFULGURITE_API_KEYS=fg-{t(24)}')" > .env.keys)
	@echo "docker compose --env-file .env --env-file .env.keys up --build --wait"

clean: ## Remove environments, engines, models and everything built. Topics and weights of `make up` too.
	rm -rf .venv .venv-serve .fulgurite .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage dist
