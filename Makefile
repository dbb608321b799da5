# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: demo test slow lint clean

demo: .venv/installed  ## train on handwritten digits, draw new ones, judge them: about three minutes
	@if [ -d $(RUN) ]; then $(BIN)/sfumato resume $(RUN); \
	else $(BIN)/sfumato train digits --classes --time 130s --out $(RUN); fi
	@$(BIN)/sfumato sample $(RUN) -n 100
	@$(BIN)/sfumato show $(RUN)
	@$(BIN)/sfumato evaluate $(RUN)

test: .venv/installed-dev  ## the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: .venv/installed-dev  ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow --timeout 3600

lint: .venv/installed-dev  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ .venv/installed

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
