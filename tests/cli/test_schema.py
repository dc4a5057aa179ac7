"""The JSON schema of configs: current, true to the shipped configs, and extended by a user's own plug-ins."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from rlhf_lightning.cli import known_schema
from rlhf_lightning.cli.key_check import check_keys
from rlhf_lightning.cli.known_schema import OWN_SCHEMA, load_schema
from rlhf_lightning.cli.shipped import SCHEMA, shipped_folder
from rlhf_lightning.errors import UserError
from tests.guarded import python_path

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in shipped_folder("configs").glob("*.yaml") if path.stem != "loop")
"""Of `fit`."""
OWN = '''
from typing import Literal
from rlhf_lightning.rewards import Reward

class Polite(Reward):
    """Reward politeness.

    Args:
        strength: how much a polite word counts.
        tone: the wanted tone.
    """

    def __init__(self, strength: float = 1.0, tone: Literal["warm", "cool"] = "warm") -> None:
        self.strength, self.tone = strength, tone

    def __call__(self, completions):
        return [self.strength] * len(completions)
'''
CALLBACK = """
from lightning.pytorch import Callback

class Count(Callback):
    def __init__(self, every: int = 1) -> None:
        self.every = every
"""
CONFIG = """
model:
  class_path: PolicyStage
  init_args:
    reward:
      class_path: own_rewards.Polite
      init_args:
        strength: 2.0
trainer:
  callbacks:
  - class_path: callbacks.count.Count
    init_args: {every: 2}
"""


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf_lightning", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=240)


def _errors(schema: dict[str, Any], config: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(config)]


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plug-ins of the user's own and their schema."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_rewards.py").write_text(OWN)
    (folder / "callbacks").mkdir()
    (folder / "callbacks" / "__init__.py").touch()  # goes before the checkout's own folder
    (folder / "callbacks" / "count.py").write_text(CALLBACK)
    (folder / "own.yaml").write_text(CONFIG)
    (folder / "compose.yaml").write_text("services: {a: {class_path: no.such.Thing}}\n")
    ran = _run(folder, "schema")
    assert ran.returncode == 0, ran.stderr
    assert "own modules: callbacks, own_rewards" in ran.stdout
    assert "skipped: module no.such" in ran.stderr
    return folder


@pytest.mark.unit
def test_arguments_that_a_logger_passes_on_are_left_to_its_package() -> None:
    """W&B's `entity` is no parameter of Lightning's logger, and is known only where W&B is installed."""
    loggers = load_schema().definitions
    tensorboard = loggers["lightning.pytorch.loggers.tensorboard.TensorBoardLogger"]
    assert tensorboard["additionalProperties"] is True
    assert "flush_secs" not in tensorboard["properties"]  # of torch's writer, which needs the package tensorboard
    wandb = {"class_path": "WandbLogger", "init_args": {"entity": "team", "project": "p"}}
    check_keys({"trainer": {"logger": wandb}})
    with pytest.raises(UserError, match="flush_logs_every_n_step"):
        check_keys({"trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"flush_logs_every_n_step": 1}}}})


def test_the_shipped_schema_is_current(tmp_path: Path) -> None:
    """Generate it again; where other versions are installed, the definitions of this package alone must agree."""
    empty = tmp_path / "empty"
    empty.mkdir()
    ran = _run(empty, "schema", "-o", "new.json")
    assert ran.returncode == 0, ran.stderr
    shipped, new = json.loads(SCHEMA.read_text()), json.loads((empty / "new.json").read_text())
    if shipped["x-versions"] != new["x-versions"]:
        names = [name for name in new["$defs"] if name.startswith("rlhf_lightning.")]
        shipped, new = ({name: each["$defs"].get(name) for name in names} for each in (shipped, new))
    assert new == shipped, "run `python -m rlhf_lightning.cli.schema_generation`"


def test_the_schema_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_the_recorded_versions_are_those_that_are_tested() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert json.loads(SCHEMA.read_text())["x-versions"] == {name: pinned[name] for name in ("lightning", "torch")}
    assert version("lightning")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_fits_the_schema(path: Path) -> None:
    assert _errors(json.loads(SCHEMA.read_text()), yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("modle",), {}),
        (("trainer", "max_epoch"), 3),
        (("model", "init_args", "policyy"), {}),
        (("model", "init_args", "policy", "lora"), {"rank": 3}),
        (("model", "init_args", "algorithm", "init_args", "epoch"), 3),
        (("model", "init_args", "algorithm", "init_args", "epochs"), "three"),
        (("model", "init_args", "algorithm", "class_path"), "PPOO"),
        (("model", "init_args", "reference"), "nf5"),
        (("model", "init_args", "optimizer", "init_args", "lrr"), 1),
        (("data", "init_args", "batchsize"), 3),
        (("trainer", "callbacks"), ["WinRat"]),
        (("trainer", "callbacks"), [{"class_path": "EarlyStopping", "init_args": {"monitr": "x"}}]),
    ],
)
def test_a_wrong_key_class_or_value_does_not_fit(keys: tuple[str, ...], value: Any) -> None:
    config = copy.deepcopy(yaml.safe_load((shipped_folder("configs") / "ppo.yaml").read_text()))
    node = config
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    assert _errors(json.loads(SCHEMA.read_text()), config)


def test_editors_are_told_descriptions_choices_and_defaults() -> None:
    definitions = json.loads(SCHEMA.read_text())["$defs"]
    ppo = definitions["rlhf_lightning.algorithms.ppo.PPO"]["properties"]
    assert ppo["gamma"]["description"]
    assert ppo["gamma"]["default"] == 1.0
    stage = definitions["rlhf_lightning.stages.policy.PolicyStage"]["properties"]
    kinds, model = stage["reference"]["anyOf"]
    assert set(kinds["enum"]) == {"auto", "nf4", "int8", "full", "adapter", "none"}
    assert model["$ref"].endswith(".ReferenceModel")
    proposed = definitions["Callback"]["anyOf"][0]["anyOf"][0]["enum"]
    assert {"WinRate", "EarlyStopping", "Checkpoints"} <= set(proposed)
    assert not {"Summary", "MonitorCheck"} & set(proposed)


def test_own_plugins_are_in_the_schema_of_their_folder(own_folder: Path) -> None:
    schema = json.loads((own_folder / OWN_SCHEMA).read_text())
    config = yaml.safe_load(CONFIG)
    assert _errors(schema, config) == []
    polite = schema["$defs"]["own_rewards.Polite"]
    assert polite["description"] == "Reward politeness."
    assert polite["properties"]["tone"]["enum"] == ["warm", "cool"]
    assert polite["properties"]["strength"]["description"] == "how much a polite word counts."
    config["model"]["init_args"]["reward"]["init_args"] = {"strenght": 2.0}
    assert _errors(schema, config)


def test_a_wrong_key_of_an_own_plugin_is_answered_before_torch_is_imported(own_folder: Path) -> None:
    code = (
        "import sys; from rlhf_lightning.__main__ import main\n"
        "assert main(['fit', '--config', 'own.yaml', *sys.argv[1:]]) == 2\n"
        "assert not {'torch', 'lightning', 'jsonargparse', 'own_rewards'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    for word, near in (("--model.reward.strenght=1", "'strength'"), ("--trainer.callbacks.evry=1", "'every'")):
        command = [sys.executable, "-c", code, word]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=own_folder, env=environment, timeout=60)
        assert ran.returncode == 0, ran.stderr
        assert f"did you mean {near}?" in ran.stderr


def _with_key(key: str) -> dict[str, Any]:
    config = yaml.safe_load(CONFIG)
    config["model"]["init_args"]["reward"]["init_args"] = {key: 1}
    return config


def test_a_stale_own_schema_refuses_nothing_of_ones_own(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_folder)
    with pytest.raises(UserError, match="did you mean 'strength'"):
        check_keys(_with_key("strenth"))
    rewards = Path("own_rewards.py")
    rewards.write_text(OWN.replace("strength", "strenth"))
    try:
        check_keys(_with_key("strenth"))
        assert "own_rewards.Polite" not in load_schema().definitions
    finally:
        rewards.write_text(OWN)
    assert "own_rewards.Polite" in load_schema().definitions
    monkeypatch.setattr(known_schema, "_version", lambda package: "0")
    assert "own_rewards.Polite" not in load_schema().definitions


def test_an_own_schema_that_is_no_json_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("{", "[1]", "{}", '{"x-made-from": 3}'):
        OWN_SCHEMA.write_text(text)
        with pytest.raises(UserError, match="max_epochs"):
            check_keys({"trainer": {"max_epoch": 3}})


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    ran = _run(tmp_path, "schema", "absent_module")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: module absent_module cannot be imported")
