# Every target does its own set-up. `make help` lists them.
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/feddp/v1/*.proto)
READY := $(VENV)/.ready
JOBS := 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint protos sim audit bench bench-peers bench-models wheel wheelhouse wheelhouse-check clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

setup: $(READY) ## make the virtual environment with everything in it

demo: $(READY) ## four hospitals train one model; ARGS="--json out.json --seed 1" passes on
	$(BIN)/feddp demo --dir build/demo $(ARGS)

test: $(READY) ## run every test, JOBS=3 files at a time; ARGS="-k name" passes on
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY) ## ruff, mypy strict, hadolint, and whether what is generated is current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy certs coordinator feddp node_agent privacy protos benchmarks
	$(BIN)/python protos/generate.py --check
	$(BIN)/python charts/generate.py --check
	$(BIN)/hadolint deploy/Dockerfile

protos: $(READY) ## generate the wire code from protos/feddp/v1
	$(BIN)/python protos/generate.py

sim: $(READY) ## simulated jobs with seeded faults; SEED=7 for one, with ARGS=--trace all of it; SEEDS=500 FIRST_SEED=1 for many
	$(BIN)/python -m tests.simulation $(if $(SEED),--first-seed $(SEED) --seeds 1,--seeds $(or $(SEEDS),500) --first-seed $(or $(FIRST_SEED),1)) $(ARGS)

audit: $(READY) ## attack and check the real training path; writes build/audit.json and audit-checks.json; ARGS="--plant no-noise" plants a bug, "--seeds 25" repeats the checks
	$(BIN)/python -m tests.audit $(ARGS)

bench: $(READY) ## rounds beside bare gRPC floors, ~10 min; ARGS="--quick" or "--case NAME"; writes build/bench.json
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(READY) ## the same rounds in Flower, in an environment of its own, and here
	FLWR_TELEMETRY_ENABLED=0 $(BIN)/python -m benchmarks.peers $(ARGS)

bench-models: $(READY) ## accuracy, AUC and Brier score by epsilon on the demo's data, ~8 min; ARGS="--runs 10"; writes build/models.json
	$(BIN)/python -W ignore::UserWarning -m benchmarks.models $(ARGS)

wheel: $(READY) ## build dist/feddp-*.whl
	$(BIN)/python -m build --wheel

wheelhouse: EXTRA := agent,sql
wheelhouse: TORCH := torch==2.13.0
wheelhouse: $(READY) ## wheels of feddp[agent,sql] (EXTRA=postgres,s3: of a coordinator) and all that it needs, for a site without an index, in build/wheelhouse
	rm -rf build/wheelhouse build/lib
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheelhouse $(if $(findstring agent,$(EXTRA)),$(TORCH)) '.[$(EXTRA)]'
	@echo "install: pip install --no-index --find-links build/wheelhouse 'feddp[$(EXTRA)]'"

wheelhouse-check: ## install from build/wheelhouse alone, in a fresh environment, and start what was installed
	rm -rf build/wheelhouse-check
	python3 -m venv build/wheelhouse-check
	PIP_CONFIG_FILE=/dev/null build/wheelhouse-check/bin/pip install --quiet --disable-pip-version-check --no-index --find-links build/wheelhouse 'feddp[agent,sql]'
	cd build && ./wheelhouse-check/bin/feddp agent --help > /dev/null && ./wheelhouse-check/bin/python -c 'import torch, opacus, psycopg, sqlalchemy, node_agent.worker, node_agent.sources.sql_query'

clean: ## remove what the targets made
	rm -rf $(VENV) build dist *.egg-info
