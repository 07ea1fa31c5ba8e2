# deepcait: everything a newcomer runs. `make` alone lists the targets.
#
# PYTHON  which Python makes the environment   make test PYTHON=python3.12
# VENV    where the environment is made        make test VENV=env
# ARGS    more for pytest                      make test ARGS="-k attention"

VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-ecosystem docs screenshots bench soak check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.core  ## train, evaluate and use a small model on real photographs (core dependencies only)
	$(VENV)/bin/deepcait demo

test: $(VENV)/.dev  ## lint, types and every test but the soak tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PY)
	$(PYTEST) -n 2 --dist loadgroup $(ARGS)

test-ecosystem: $(VENV)/.ecosystem  ## tests with other people's big packages: transformers, peft, Lightning, notebooks, ...
	$(PYTEST) tests/ecosystem $(ARGS)

check: $(VENV)/.dev  ## the same without slow tests and tests that start processes
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PY)
	$(PYTEST) -n 2 --dist loadgroup -m "not soak and not slow and not process" $(ARGS)

docs: $(VENV)/.docs  ## the documentation site, build/docs/index.html; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "The site: build/docs/index.html"

screenshots: $(VENV)/.dev  ## the screenshots of the documentation, from a run of the demo; needs Chromium
	$(PY) docs/pictures/screenshots.py

bench: $(VENV)/.core  ## images per second of the data loader, compared with timm, in a minute (core dependencies only)
	$(VENV)/bin/deepcait bench --data deepcait/assets/demo/test --rounds 3 --batch-size 16

soak: $(VENV)/.dev  ## the tests that take minutes to hours, one after another; resumes where it stopped
	$(PYTEST) -p tests.soak --soak docs/results/soak.json -m soak --timeout 7200 $(ARGS)

clean:  ## remove the environment and what the tools left behind
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist htmlcov .coverage .coverage.*

# Each stamp says what was installed; it is older than pyproject.toml or constraints.txt when that is to be done again.
$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing deepcait. PyTorch for Linux comes with its CUDA libraries: about 3 GB to fetch, 6 GB on disk."
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing deepcait and its tools. PyTorch for Linux comes with its CUDA libraries: about 3 GB to fetch, 6 GB on disk."
	$(PIP) install -c constraints.txt -e ".[dev,data,serve,explain,export,openvino]"
	@touch $@

$(VENV)/.ecosystem: $(VENV)/.dev
	$(PIP) install -c constraints.txt -e ".[dev,data,serve,explain,export,openvino,ecosystem]"
	@touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing deepcait and Sphinx. PyTorch for Linux comes with its CUDA libraries: about 3 GB to fetch, 6 GB on disk."
	$(PIP) install -c constraints.txt -e ".[docs]"
	@touch $@

# The first Python that is new enough and can make an environment; the remedy where there is none.
$(VENV)/.made:
	@new=""; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  new="$$python"; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "Making $(VENV) with $$("$$python" --version) ($$python)."; \
	  "$$python" -m venv "$(VENV)" && touch "$@" && exit 0; \
	  echo "$$python could not make $(VENV); its message is above."; exit 1; \
	done; \
	if [ -n "$$new" ]; then \
	  echo "$$new has no complete venv module (ensurepip is missing)."; \
	  echo "Remedy, on Debian and Ubuntu: apt-get install python3-venv; then run make again."; \
	else \
	  echo "deepcait needs Python 3.11 or newer; none among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)."; \
	  echo "Remedy: install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=..."; \
	fi; \
	exit 1
