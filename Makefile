# Everything runs in $(VENV), which `make setup` builds once. See `make help`.

VENV ?= .venv
PYTHON ?= python3
DETECTRON2 ?=
JOBS ?= 2

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
STAMP := $(VENV)/.resnext_det-setup
WHAT = $(if $(wildcard $(PY)),$(PY),$(PYTHON))
BENCHMARKS := $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))
CACHES := build *.egg-info .pytest_cache .ruff_cache

.DEFAULT_GOAL := help
.PHONY: setup demo test soak refusals lint audit bench clean help

# The stamp holds the DETECTRON2 it was made with: naming another one runs the setup again,
# naming none keeps what is installed.
ifneq ($(strip $(DETECTRON2)),)
ifneq ($(strip $(DETECTRON2)),$(shell cat '$(STAMP)' 2>/dev/null))
.PHONY: $(STAMP)
endif
endif

help:
	@echo 'make setup   virtual environment with torch, Detectron2 and this package (once)'
	@echo 'make demo    train and show a small detector (tools/demo.py)'
	@echo 'make test    the tests, in JOBS processes'
	@echo 'make soak    a hundred killed runs, ten thousand hostile inputs a reader, long runs (an hour)'
	@echo 'make refusals  docs/refusals.md, from a run of the tests'
	@echo 'make lint    ruff check and ruff format --check'
	@echo 'make audit   published advisories about what is installed (network)'
	@echo 'make bench   every script in benchmarks/'
	@echo 'make clean   remove .venv and caches; output/ and datasets/ stay'
	@echo 'variables    VENV=$(VENV)  PYTHON=$(PYTHON)  JOBS=$(JOBS)'
	@echo '             DETECTRON2=<folder, git URL or wheel> replaces the installed Detectron2'

setup: $(STAMP)

$(STAMP): setup.py $(wildcard requirements/*)
	@$(WHAT) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo 'setup: Python 3.10 or newer is needed, which "$(WHAT)" is not:' \
	         'name one, as in `make setup PYTHON=python3.11`' >&2; exit 1; }
	@test -x '$(PY)' || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'setup: "$(PYTHON)" has no venv module: install it (on Debian: apt install' \
	         'python3-venv) or name another, as in `make setup PYTHON=python3.11`' >&2; exit 1; }
	@test -x '$(PY)' || { echo 'setup 1/4: virtual environment in $(VENV)'; \
	  $(PYTHON) -m venv '$(VENV)'; }
	@if $(PY) -c 'import torch, torchvision' 2>/dev/null; \
	  then echo 'setup 2/4: torch and torchvision are there'; \
	  else echo 'setup 2/4: torch and torchvision (a large download)'; \
	       $(PIP) install torch torchvision 'setuptools>=70.1'; fi
	@echo 'setup 3/4: this package and what it needs'
	@$(PIP) install -e '.[dev]'
	@echo 'setup 4/4: Detectron2'
	@$(if $(strip $(DETECTRON2)),rm -f '$(STAMP)')
	@$(PY) requirements/install_detectron2.py '$(strip $(DETECTRON2))'
	@$(if $(strip $(DETECTRON2)),echo '$(strip $(DETECTRON2))' > '$(STAMP)',touch '$(STAMP)')

demo: setup
	$(PY) tools/demo.py

# One thread for each process: two that take every core are slower than one.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS)

soak: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m long tests/soak

audit: setup
	$(PIP) install pip-audit
	$(PY) -m pip_audit --skip-editable

# Which test meets which refusal, recorded while the suite runs (tests/refusals.py).
refusals: setup
	rm -f build/refusals && mkdir -p build
	-OMP_NUM_THREADS=1 PYTHONPATH=tests RESNEXT_DET_REFUSALS=$(CURDIR)/build/refusals \
	  $(PY) -m pytest -q -n $(JOBS) -p refusals
	RESNEXT_DET_REFUSALS=$(CURDIR)/build/refusals $(PY) tests/refusals.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: setup
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(PY) "$$script"; done

clean:
	rm -rf .venv $(CACHES)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
