# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
export OMP_WAIT_POLICY := PASSIVE

# The tests that use other packages most: detectors, importers, weights of transformers, metrics, command line, pages.
FAST := adapters cli regions/detectors regions/importers metrics report model/test_convert.py training/test_resuming.py \
	training/test_wandb.py training/test_deepspeed_options.py test_config.py test_predictor.py test_export.py

.PHONY: setup demo test coverage test-newest lint format docs
setup: $(VENV)/installed
$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dimvl needs Python 3.11 or newer; set PYTHON=/path/to/one")'
	@echo "On Linux, torch may bring several gigabytes of CUDA packages. To install the CPU build instead, stop this and run"
	@echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(VENV)/bin/dimvl demo

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Several processes of one thread each; the tests of a file share one.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# The documentation as a site: open site/index.html. A broken link or a page that is missing in mkdocs.yml fails.
docs: setup
	$(VENV)/bin/mkdocs build --strict

coverage: setup
	$(VENV)/bin/pytest --cov=dimvl --cov-report=term:skip-covered

# A new environment with the newest versions that setup.py allows, a fast part of the tests there, and a quick demo.
test-newest:
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	$(VENV)-newest/bin/pip freeze
	$(VENV)-newest/bin/pytest -m 'not slow' $(addprefix tests/,$(FAST))
	$(VENV)-newest/bin/dimvl demo --quick --out $(VENV)-newest/demo

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
