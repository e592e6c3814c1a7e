# Two commands set up everything on a fresh Debian machine with Python 3.11: `make demo` and `make test`.
# Every target installs what it needs into .venv and does nothing twice.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LOCK   := requirements.lock
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
# The torch wheel of this lock; the CPU build where one is at hand (see README, "Build side").
TORCH  ?= torch==2.13.0
DATA   ?=
OUT    ?= build/demo
TEST   := OMP_NUM_THREADS=2 $(BIN)/python -m pytest

.PHONY: help install demo test test-slow nightly soak promises lint lock bench clean
help:           ## list the targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 2; }

# The run side: no torch. llama.cpp is compiled once (about 5 minutes on 2 cores) and kept in pip's cache;
# WORDS=0 leaves it out, the template describer then does the talking.
$(VENV)/.run: $(BIN)/python pyproject.toml $(LOCK)
	$(PIP) install -q -c $(LOCK) -e '.[cpu,demo]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { echo "OpenCV needs two Debian packages: apt-get install libgl1 libglib2.0-0"; exit 2; }
	@touch $@
$(VENV)/.describe: $(VENV)/.run
ifneq ($(WORDS),0)
	@echo "Installing the language model's runtime: compiling llama.cpp takes about 5 minutes the first time (WORDS=0 skips it)"
	$(PIP) install -q -c $(LOCK) -e '.[cpu,describe,demo]' || echo "llama-cpp-python did not build (apt-get install build-essential): going on with the template describer"
endif
	@touch $@
$(VENV)/.dev: $(VENV)/.describe
	$(PIP) install -q '$(TORCH)'
	$(PIP) install -q -c $(LOCK) -e '.[cpu,openvino,describe,export,gateways,ray,demo,dev]'
	@touch $@

$(VENV)/.gateways: $(VENV)/.describe
	$(PIP) install -q -c $(LOCK) -e '.[cpu,gateways,demo]'
	@touch $@

install: $(VENV)/.gateways ## the run side: station, engines, describer, gateways (no torch)
	@$(BIN)/station --help >/dev/null && echo "Ready: $(BIN)/station --help"

demo: $(VENV)/.describe ## inspect real parts and look at verdicts, heat maps and descriptions (DATA=folder for your own)
	$(BIN)/python -m station.demo --out $(OUT) $(if $(DATA),--data $(DATA),)

test: $(VENV)/.dev ## every promise at a small count, under 15 minutes on 2 cores
	$(TEST) -m 'not slow and not nightly and not gpu'

test-slow: $(VENV)/.dev ## the counts of the promises
	$(TEST) -m 'slow and not nightly and not gpu'

nightly: $(VENV)/.dev ## soaks, mutation, peers
	$(TEST) -m 'nightly' --timeout 0

soak: $(VENV)/.dev ## P1 with 1,000 kills, P9 for an hour
	$(TEST) -m 'nightly' -k 'soak or kill' --timeout 0

promises: $(VENV)/.dev ## docs/promises.md: what the tests of P1-P12 last told
	$(BIN)/python tests/promises.py

lint: $(VENV)/.dev ## ruff and mypy over every package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## the speed tables of benchmarks/RESULTS.md
	@for b in $(filter-out common peers peers_child soak,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))); do \
	  echo "== benchmarks.$$b"; $(BIN)/python -m benchmarks.$$b || exit 1; done

lock: $(BIN)/python ## pin every version anew (cpu and gpu exclude each other, both are in the file)
	$(PIP) install -q uv
	$(BIN)/uv lock -q --upgrade
	@{ echo "# Made by 'make lock' from pyproject.toml: a pip constraints file. cpu and gpu conflict ([tool.uv]);"; \
	   echo "# both are pinned here, and a constraints file installs neither by itself."; \
	   { $(BIN)/uv export -q --frozen --no-hashes --no-emit-project --no-annotate --no-header --all-extras --no-extra gpu; \
	     $(BIN)/uv export -q --frozen --no-hashes --no-emit-project --no-annotate --no-header --extra gpu; } | sort -u; } > $(LOCK)
	@rm uv.lock && wc -l $(LOCK)

clean:          ## remove build products (recipes and ledgers stay)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
