# Two commands do all the set-up: `make demo` trains and compares on real digits, `make test` runs every check.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO_ARGS ?=
# Processes of pytest: auto is one for each core, 0 none beside its own (for a debugger). PYTEST_ARGS go to pytest.
JOBS ?= auto
PYTEST_ARGS ?=
# The torch of `make test-oldest`: pyproject.toml's floor.
TORCH ?= 2.13.0
OLDEST := .venv-torch-$(TORCH)
PYTEST := python -m pytest -n $(JOBS) $(PYTEST_ARGS)

.PHONY: demo test test-fast test-oldest test-wheel coverage lint fmt docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/digits.py $(DEMO_ARGS)

fmt: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/$(PYTEST)

test-fast: $(VENV)/.installed
	$(BIN)/$(PYTEST) -m "not slow"

coverage: $(VENV)/.installed
	$(BIN)/$(PYTEST) --cov --cov-report=term:skip-covered

# An environment of its own, so that another torch does not replace the one that is worked with.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet 'torch==$(TORCH)' --editable '.[dev]'
	$(OLDEST)/bin/$(PYTEST)

# What a user gets: see .ci/test-wheel.
test-wheel:
	.ci/test-wheel tests -n $(JOBS) $(PYTEST_ARGS)

# The site, in out/site/index.html: offline, every warning an error, every public name in the reference.
$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs-installed
	$(BIN)/python -m sphinx --fresh-env --write-all --fail-on-warning --keep-going --quiet -b html docs out/site
	$(BIN)/python docs/_ext/check_site.py out/site

clean:
	rm -rf $(VENV) .venv-torch-* dist docs/api docs/gallery out .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
