PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Each test process takes one core and up to 2 GiB; `make test PARALLEL=` runs all tests in one process.
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal
# Mutation tests that run at the same time in `make nightly`.
JOBS ?= 2

.PHONY: first-run quick test nightly fuzz check wheel pipeline environment test-environment

# Install into .venv and run PPO on the playground, about three minutes on a laptop. Only the package registry is needed.
first-run: environment
	$(BIN)/python -m rlhf_lightning fit --config ppo.yaml

# Install into .venv and run the tests: at most ten minutes on two cores.
test: test-environment
	$(BIN)/python -m pytest $(PARALLEL)

# Run the unit tests: under a minute on two cores.
quick: test-environment
	$(BIN)/python -m pytest -m unit $(PARALLEL)

# Run what takes hours and write benchmarks/results/nightly.md, which is committed.
nightly: test-environment
	$(BIN)/python benchmarks/nightly.py -j $(JOBS)

# Try twenty times as many generated files as `make test`, and ten times as many configs and command lines.
fuzz: test-environment
	FUZZ=nightly $(BIN)/python -m pytest tests/data/test_fuzz_readers.py tests/cli/test_fuzz_command_lines.py

# Run what every commit must pass.
check: test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Build the source archive and the wheel, and train with the wheel in an empty environment.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

# Train each stage on the export of the stage before: supervised, reward model, PPO. Under fifteen minutes.
pipeline: environment
	$(BIN)/python -m rlhf_lightning fit --config sft.yaml --trainer.default_root_dir runs/pipeline/sft
	$(BIN)/python -m rlhf_lightning fit --config reward.yaml --trainer.default_root_dir runs/pipeline/reward \
	    --model.model.name_or_path runs/pipeline/sft/export
	$(BIN)/python -m rlhf_lightning fit --config ppo.yaml --trainer.default_root_dir runs/pipeline/ppo \
	    --model.policy.name_or_path runs/pipeline/sft/export --model.reward.name_or_path runs/pipeline/reward/export

environment: $(BIN)/rlhf-lightning

$(BIN)/rlhf-lightning: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

test-environment: $(VENV)/.installed-for-tests

$(VENV)/.installed-for-tests: $(BIN)/rlhf-lightning
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,feedback]'
	@touch $@
