# Two commands do all the set-up on a fresh machine with Python 3.11 or newer:
#   make demo   the gateway with a simulated scale and a simulated machine
#   make test   the whole suite

PYTHON ?= python3
VENV ?= .venv

# What npm has installed for the tests, and where it says so.
NPM = tests/clients/node_modules/.package-lock.json

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m gateway.demo

test: $(VENV)/.test $(NPM)
	$(VENV)/bin/python -m pytest --numprocesses 4 --dist worksteal

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info demo tests/clients/node_modules

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.x ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(NPM): tests/clients/package-lock.json
	@if command -v npm >/dev/null; then cd tests/clients && npm ci --silent --no-fund --no-audit && touch node_modules/.package-lock.json; \
	else echo "npm is not installed: tests with npm's socket.io-client are skipped" >&2; fi
