# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test lint format
setup: $(VENV)/installed
$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dimvl needs Python 3.11 or newer; set PYTHON=/path/to/one")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(VENV)/bin/dimvl demo

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/pytest --cov=dimvl --cov-report=term:skip-covered

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
