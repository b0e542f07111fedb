# Two commands do all the set-up on a fresh machine with Python 3.11 or newer:
#   make demo   the gateway with a simulated scale and a simulated machine
#   make test   the whole suite
# For development (see CONTRIBUTING.rst):
#   make test-fast                unit tests that take about a minute
#   make coverage                 unit tests with branch coverage
#   make lint                     linters, types, spelling
#   make docs                     documentation, in build/docs
#   make dist                     source distribution and wheel, in dist/
#   make bundle                   bundle for machines without internet, in dist/
#   make test-latest              the whole suite on the newest release of every dependency
#   make bench                    micro-benchmarks, in seconds
#   make bench-compare BASE=REV   micro-benchmarks of two revisions; fails if one is 10 % slower

PYTHON ?= python3
VENV ?= .venv

# Lowest branch coverage of the unit tests that is accepted, in percent.
COVERAGE = 85

# Packages that npm has installed for the tests, and its record of them.
NPM = tests/clients/node_modules/.package-lock.json

PYTEST = $(VENV)/bin/python -m pytest --numprocesses 4 --dist worksteal

.PHONY: demo test test-fast coverage lint docs dist bundle test-latest bench bench-compare clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m gateway.demo

test: $(VENV)/.test $(NPM)
	$(PYTEST)

test-fast: $(VENV)/.test
	HYPOTHESIS_PROFILE=quick $(PYTEST) -q -m "not slow" tests/unit

# Fewer examples of each property, and without the tests that measure memory: tracing makes those three times as slow.
coverage: $(VENV)/.test
	HYPOTHESIS_PROFILE=quick $(PYTEST) -q tests/unit -k "not small_multiple" --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE)
	$(VENV)/bin/coverage report --include='gateway/wire/*' --fail-under=100

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy

docs: $(VENV)/.docs
	$(VENV)/bin/sphinx-build --fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs build/docs
	@echo "build/docs/index.html"

dist: $(VENV)/.test
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist .
	$(VENV)/bin/twine check --strict dist/*

bundle: dist
	bundle/make.sh $(VENV)/bin/python dist/*.whl dist

test-latest:
	$(MAKE) VENV=$(VENV)-latest $(VENV)-latest/.test $(NPM)
	$(VENV)-latest/bin/python -m tests.support.newest | xargs $(VENV)-latest/bin/python -m pip install --upgrade
	$(VENV)-latest/bin/python -m pytest --numprocesses 4 --dist worksteal

bench: $(VENV)/.test
	$(VENV)/bin/python -m benchmarks micro

bench-compare: $(VENV)/.test
	@test -n "$(BASE)" || { echo "usage: make bench-compare BASE=REVISION" >&2; exit 2; }
	$(VENV)/bin/python -m benchmarks compare $(BASE)

clean:
	rm -rf $(VENV) $(VENV)-latest build dist *.egg-info demo tests/clients/node_modules examples/node_modules gateway/web/static/swagger-ui

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.x ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "a virtual environment cannot be made: install the package python3-venv" >&2; exit 1; }

$(VENV)/.demo: setup.cfg pyproject.toml web/package-lock.json | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml web/package-lock.json | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/.docs: setup.cfg pyproject.toml web/package-lock.json | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(NPM): tests/clients/package-lock.json
	@if command -v npm >/dev/null; then cd tests/clients && npm ci --silent --no-fund --no-audit && touch node_modules/.package-lock.json; \
	else echo "npm is not installed: tests with npm's socket.io-client are skipped" >&2; fi
