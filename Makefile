# Two commands: `make chat` and `make test`. Both set up what they need; typed again, they start at once.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: chat test lint types imports tests train clean

chat: .venv/installed
	@$(BIN)/eft chat

test: lint types imports tests

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

imports: .venv/installed-dev
	$(BIN)/lint-imports

tests: .venv/installed-dev
	$(BIN)/python -m pytest

train: .venv/installed-train
	$(BIN)/python -m eft_local.models.demo.training

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eft-local needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 chat")'
	$(PYTHON) -m venv .venv

# llama-cpp-python compiles llama.cpp here, once: 5 to 6 minutes on two cores.
.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch .venv/installed $@

.venv/installed-train: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable '.[train]'
	@touch .venv/installed $@

clean:
	rm -rf .venv build dist *.egg-info
