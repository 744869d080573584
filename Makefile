# Needs python3 (3.11 or newer, with venv), make and git; everything else goes into .venv. Say
# `make PYTHON=python3.12 ...` to choose the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
# What is installed is named after the folder and the content of pyproject.toml, so that the same
# content installs nothing again, and a moved checkout does.
KEY := $(shell { pwd; cat pyproject.toml; } | cksum | cut -d ' ' -f 1)
RUN := $(VENV)/run-$(KEY).stamp
DEV := $(VENV)/dev-$(KEY).stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --prefer-binary --progress-bar off
# The oldest Triton that pyproject.toml allows, and the last numpy whose arrays its interpreter takes as loop bounds:
# first on the path, beside a torch that pins a newer one.
OLDEST := $(VENV)/triton-3.6.0
# A process a core, and each file in one, for its fixtures of minutes; tests/conftest.py gives each process one thread.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
# Of pip's output: the downloads that take a while, and the step after them.
SHOW := awk '/^ *Downloading.*MB\)/ { print "  " $$1, $$2, $$3, $$4; fflush() } /^Installing/ { print "  unpacking"; fflush() }'

.PHONY: help demo test test-all test-oldest kernel-tables lint types bench gpu-suite model help-texts wheel clean soak

help:
	@echo 'make demo        restore the photos in assets/demo and write a report'
	@echo 'make test        ruff, pyright, and the tests that take seconds'
	@echo 'make test-all    the tests that take minutes, and make test-oldest'
	@echo 'make test-oldest kernel tests with the oldest Triton allowed'
	@echo 'make lint        ruff alone                make types    pyright alone'
	@echo 'make bench       time one face on this machine'
	@echo 'make gpu-suite   prove and measure on a GPU what needs one: PART=kernels, pipeline or compile'
	@echo 'make soak        kill serve-batch again and again for minutes: SOAK=ray for one part'
	@echo 'make model       train lafr-mini anew (hours on a CPU); the same command resumes'
	@echo 'make help-texts  write docs/help again     make wheel    build dist/*.whl'
	@echo 'make clean       remove .venv and all that was built'

demo: $(RUN)
	$(BIN)/fr-deploy restore assets/demo -o demo-out --report demo-out/report.html
	@echo
	@echo 'restored photos  $(CURDIR)/demo-out'
	@echo 'report           $(CURDIR)/demo-out/report.html'

test: lint types
	$(PYTEST) -m "not slow and not gpu"

test-all: $(DEV) test-oldest
	$(PYTEST) -m "slow and not gpu"

test-oldest: $(DEV) $(OLDEST)/installed
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -c 'import triton as t; assert t.__version__ == "3.6.0", t.__path__'
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(PYTEST) -m "oldest and not gpu"

# What both Tritons make of every kernel; rows whose source is as it was are kept.
kernel-tables: $(DEV) $(OLDEST)/installed
	$(BIN)/python -m fr_kernels.aot --keep kernels/aot.csv -o kernels/aot.csv
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -m fr_kernels.aot --keep kernels/aot-oldest.csv -o kernels/aot-oldest.csv

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/pyright

bench: $(RUN)
	$(BIN)/fr-deploy bench restore

# On a GPU; REHEARSE=1 runs the same steps tiny on a CPU.
gpu-suite: $(DEV)
	$(BIN)/python -m fr_bench.gpu_suite $(PART) $(if $(REHEARSE),--rehearse -o gpu-suite-rehearsal)

# Figures go to benchmarks/results/soak.json.
soak: $(DEV)
	$(BIN)/python -m fr_bench.soak $(SOAK)

# Generated faces, the five stages and the bundle, each as far as it is not there yet.
model: $(DEV)
	$(BIN)/fr-deploy data faces -o runs/faces
	for stage in vae adapter restorer polish finish; do \
	  $(BIN)/fr-deploy train $$stage --preset lafr-mini --data runs/faces -o runs/lafr-mini || exit 1; \
	done
	$(BIN)/fr-deploy bundle runs/lafr-mini -o runs/bundle

help-texts: $(RUN)
	$(BIN)/python -c 'from pathlib import Path; from fr_deploy.cli import write_help_texts as w; w(Path("docs/help"))'

wheel: $(RUN)
	rm -rf build
	$(PIP) wheel --quiet --no-deps -w dist .

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON) python3 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$python"; exec $$python -m venv $(VENV); \
	  fi; \
	done; echo 'no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.12' >&2; exit 1

$(RUN): | $(BIN)/python
	@echo 'installing fr-deploy into $(VENV) (2.5 GB with a CPU build of torch; a minute or two)'
	@rm -f $(VENV)/*.stamp
	@$(INSTALL) -e . | $(SHOW)
	@touch $@
	@echo 'installed'

$(OLDEST)/installed: | $(BIN)/python
	@echo 'installing Triton 3.6.0 into $(OLDEST) (0.7 GB; seconds)'
	@rm -rf $(OLDEST)
	@$(INSTALL) --no-deps --target $(OLDEST) triton==3.6.0 numpy==2.3.5 | $(SHOW)
	@touch $@

$(DEV): | $(BIN)/python
	@echo 'installing fr-deploy and its development tools into $(VENV) (a minute or two)'
	@rm -f $(VENV)/*.stamp
	@$(INSTALL) -e '.[dev]' | $(SHOW)
	@touch $(RUN) $@
	@echo 'installed'
