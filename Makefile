PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: first-run test check environment

# Install into .venv and run PPO on the playground: two or three minutes on a laptop, no network but the package registry.
first-run: environment
	$(BIN)/python -m rlhf_lightning fit --config ppo.yaml

# Install into .venv and run the tests.
test: environment
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/python -m pytest

# Everything a commit must pass.
check: test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

environment: $(BIN)/rlhf-lightning

$(BIN)/rlhf-lightning: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@
