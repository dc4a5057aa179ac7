PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A process of tests takes a core and up to 2 GiB; `make test PARALLEL=` runs them all in one.
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal

.PHONY: first-run test fuzz check pipeline environment

# Install into .venv and run PPO on the playground: two or three minutes on a laptop, no network but the package registry.
first-run: environment
	$(BIN)/python -m rlhf_lightning fit --config ppo.yaml

# Install into .venv and run the tests.
test: environment
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/python -m pytest $(PARALLEL)

# Twenty times as many generated files as `make test` takes.
fuzz: environment
	FUZZ=nightly $(BIN)/python -m pytest tests/data/test_fuzz_readers.py

# Everything a commit must pass.
check: test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

environment: $(BIN)/rlhf-lightning

$(BIN)/rlhf-lightning: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

# Everything from scratch, each stage on the export of the one before: supervised, reward model, PPO. Under 15 minutes.
pipeline: environment
	$(BIN)/python -m rlhf_lightning fit --config sft.yaml --trainer.default_root_dir runs/pipeline/sft
	$(BIN)/python -m rlhf_lightning fit --config reward.yaml --trainer.default_root_dir runs/pipeline/reward \
	    --model.model.name_or_path runs/pipeline/sft/export
	$(BIN)/python -m rlhf_lightning fit --config ppo.yaml --trainer.default_root_dir runs/pipeline/ppo \
	    --model.policy.name_or_path runs/pipeline/sft/export --model.reward.name_or_path runs/pipeline/reward/export
