# Everything a person does with a clone; `make` alone lists it.
#
# Options: PYTHON=python3.12        the interpreter that .venv is made from (default: python3, or a newer one on PATH)
#          TORCH_INDEX=URL          a package index that offers other builds of torch, such as CPU-only ones
#          VENV=folder  WORKERS=2   where to install; how many processes run the tests
#          CASE=name    STRICT=1    which benchmark to run; whether a missed figure is an error

VENV ?= .venv
PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2
CASE ?=
STRICT ?=
export TORCH_INDEX STRICT

RUN := "$(VENV)/bin/python"
PYTEST := $(RUN) -m pytest
ON_DEVICE := PYTHONPATH=src $(if $(wildcard $(VENV)/bin/python),"$(VENV)/bin/python","$(PYTHON)")

# An interpreter named by hand is taken at its word; otherwise the environment's own, then python3, then newer ones.
ifeq ($(origin PYTHON),file)
INTERPRETERS := "$(VENV)/bin/python" "$(PYTHON)" python3.14 python3.13 python3.12 python3.11
else
INTERPRETERS := "$(PYTHON)"
endif

# $(call environment,demo|dev): $(VENV) holds the tested versions of what that purpose needs. A no-op takes ~0.1 s.
define environment
@for each in $(INTERPRETERS); do \
  if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
    exec "$$each" tools/environment.py "$(VENV)" $(1); \
  fi; \
  tried="$$tried $$each ($$("$$each" -V 2>/dev/null || echo absent))"; \
done; \
echo "error: lateinteraction needs Python 3.11 or newer; tried:$$tried." >&2; \
echo "Name one: make PYTHON=/path/to/python3.12 ...; Debian 12, Ubuntu 24.04 and later have it as python3." >&2; \
exit 1
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-deep torture check lint format types imports links docs fix aot bench peers peers-index gpu clean environment-demo environment-dev

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: environment-demo  ## Search your Python's own library with a real model: the first result
	@"$(VENV)/bin/lateinteraction" demo

test: environment-dev  ## Run the whole test suite, with coverage
	@rm -f .coverage .coverage.*
	$(PYTEST) -n $(WORKERS) --cov --cov-report=term --cov-fail-under=90
	@$(RUN) -m coverage report --include='*/lateinteraction/domain/*,*/lateinteraction/application/*' --fail-under=100

test-deep: environment-dev  ## Run it with 500 examples for each law, and the slow cases
	HYPOTHESIS_PROFILE=deep $(PYTEST) -n $(WORKERS) --timeout=3600

torture: environment-dev  ## Kill writers, damage files, fail the storage of indexes: what is lost or answered wrongly
	@$(RUN) tools/torture.py

check: lint format types imports links  ## Everything that is not a test: lint, format, types, imports, links

lint: environment-dev  ## Check the rules of pyproject.toml
	$(RUN) -m ruff check --quiet .

format: environment-dev
	$(RUN) -m ruff format --quiet --diff .

types: environment-dev  ## Check the types
	"$(VENV)/bin/basedpyright" --pythonpath $(RUN)

imports: environment-dev  ## Check which module may import which
	"$(VENV)/bin/lint-imports" --no-logo

links: environment-dev  ## Follow every link of README and docs
	$(PYTEST) -q tests/docs/test_links.py

docs: environment-dev  ## Run every snippet of README and docs, follow every link
	$(PYTEST) -q tests/docs

fix: environment-dev  ## Mend what a tool can mend: lint and format
	$(RUN) -m ruff check --quiet --fix .
	$(RUN) -m ruff format --quiet .

aot: environment-dev  ## Compile the GPU kernels for accelerators that are not here; registers, memory, instructions
	@$(RUN) tools/ahead_of_time.py

bench: environment-dev  ## Run one benchmark: CASE=name, STRICT=1; encode and kernels need `make peers` once, index `make peers-index`
	$(RUN) -m benchmarks $(CASE)

peers: environment-dev  ## Compare with PyLate and sentence-transformers; installs them
	@$(RUN) tools/peers.py
	@$(RUN) -m benchmarks.peers

peers-index: environment-dev  ## Build the indexes that CASE=index compares with, once; installs PyLate, fast-plaid and xtr-warp-rs
	@$(RUN) tools/peers_index.py
	@$(RUN) -m benchmarks.peers.indexes

# Installs nothing, since a machine with an accelerator may have no network: the environment's interpreter where there
# is one, else PYTHON, which needs torch for the accelerator, triton, numpy, attrs, pytest, pytest-timeout and hypothesis.
gpu:  ## Run the device tests, then the benchmarks of the accelerator; installs nothing
	@$(ON_DEVICE) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "error: torch %s sees no accelerator here, so no device test can run" % torch.__version__)'
	@$(ON_DEVICE) -m pytest -m gpu -W default $(if $(wildcard $(VENV)/bin/python),,tests/kernels); tests=$$?; \
	$(ON_DEVICE) -m benchmarks gpu && exit $$tests

clean:  ## Remove what was built and cached; .venv stays
	rm -rf build dist .coverage .coverage.* coverage.xml .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

environment-demo:
	$(call environment,demo)

environment-dev:
	$(call environment,dev)
