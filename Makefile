# The verbs of saedex. `make quickstart` and `make test` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Tests start some hundred processes; where the surroundings forbid to keep what Python compiles, each would compile torch anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart explore test lint peers lock audit bench docs ui clean

quickstart: $(VENV)/train ## from nothing to labelled features of a real model
	$(VENV)/bin/sae-train training_configs/quickstart.yaml
	@echo "To look at the features in a browser:  make explore"

explore: $(VENV)/train ## open the explorer of the quickstart run
	$(VENV)/bin/sae serve runs/quickstart --people runs/people.sqlite

test: $(VENV)/test lint peers ## everything that must hold
	@sh tests/bring_chromium.sh
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal
	SAEDEX_PEERS=1 $(VENV)-peers/bin/python -m pytest tests/test_peers.py tests/test_peer_circuits.py tests/test_peer_files.py tests/test_peer_releases.py tests/test_registry.py tests/test_delphi.py tests/test_neuronpedia.py tests/test_dashboards.py

peers: $(VENV)/test ## an environment on top of the tests' with the peers' own packages, to judge exports
	@test -d $(VENV)-peers || $(PYTHON) -m venv $(VENV)-peers
	@$(VENV)-peers/bin/python tests/join_environment.py $(VENV)
	@$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r tests/peers.txt

lint: $(VENV)/test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/bandit --quiet --recursive --severity-level medium --configfile pyproject.toml --exclude server/ui sae server feature_store
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

lock: .venv-audit/tools ## pin what the server's image is built of, with hashes
	CUSTOM_COMPILE_COMMAND="make lock" .venv-audit/bin/pip-compile --quiet --generate-hashes --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --strip-extras --allow-unsafe --no-annotate \
		--constraint constraints.txt pyproject.toml --output-file docker/serve.lock

audit: .venv-audit/tools ## known faults in what the server and the explorer are built of, and a list of the parts
	.ci/audit

bench: $(VENV)/test ## ratios of the CPU kernels to their plain reference
	$(VENV)/bin/python -m tests.bench

docs: $(VENV)/train ## rewrite the generated pages
	$(VENV)/bin/python -m tests.generate_docs

ui: ## rebuild the explorer with the system's npm, for those who work on it
	cd server/ui && npm ci && npm run check && npm run build

clean:
	rm -rf $(VENV) $(VENV)-peers build dist server/static server/ui/node_modules

.venv-audit/tools:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-tools pip-audit cyclonedx-bom
	@touch $@

$(VENV)/python: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/train: $(VENV)/python pyproject.toml
	$(PIP) --editable ".[train]"
	@touch $@

$(VENV)/test: $(VENV)/python pyproject.toml
	$(PIP) --editable ".[test]"
	@touch $@ $(VENV)/train
