"""Faults of a config that need no torch are said without it, and nothing is refused that the command line takes."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.run.glance import PACKAGE, READ, Glance, check_keys

ROOT = Path(__file__).parents[2]
FAULTS = {
    "{model: {class_path: PolicyStage, init_args: {policyy: {}}}}": (
        "unknown key 'model.init_args.policyy'; did you mean 'policy'?"
    ),
    "{model: {class_path: PolicyStage, init_args: {policy: {lora: {rank: 3}}}}}": (
        "unknown key 'model.init_args.policy.lora.rank'; expected one of: alpha, dropout, r, rslora, target_modules"
    ),
    "{model: {class_path: PolicyStage, init_args: {algorithm: {class_path: PPO, init_args: {epoch: 3}}}}}": (
        "unknown key 'model.init_args.algorithm.init_args.epoch'; did you mean 'epochs'?"
    ),
    "{model: {class_path: PolicyStage, init_args: {evaluation_rewards: {x: {class_path: LengthRewards}}}}}": (
        "there is no class 'LengthRewards' for model.init_args.evaluation_rewards.x; did you mean 'LengthReward'?"
    ),
    "{data: {class_path: PlaygroundPrompts, init_args: {batchsize: 3}}}": (
        "unknown key 'data.init_args.batchsize'; did you mean 'batch_size'?"
    ),
}
LIGHT = """
import sys
from rlhf_lightning.__main__ import main
assert main(["--version"]) == main(["--help"]) == 0
for words in (["fti"], ["fit", "--config", "nowhere"], *(["fit", "--config", name] for name in sys.argv[1:])):
    assert main(words) == 2, words
assert not {"torch", "transformers", "lightning", "jsonargparse"} & set(sys.modules)
"""


def test_help_version_and_faults_of_a_config_come_before_torch(tmp_path: Path) -> None:
    for number, text in enumerate(FAULTS):
        (tmp_path / f"{number}.yaml").write_text(text)
    command = [sys.executable, "-c", LIGHT, *(f"{number}.yaml" for number in range(len(FAULTS)))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[2:] == [f"error: {line}" for line in FAULTS.values()]


@pytest.mark.parametrize(
    "text",
    [
        "{model: {class_path: mine.PPO, init_args: {policyy: 3}}}",
        "{model: {class_path: PolicyStage, init_args: {algorithm: {class_path: mine.Odd, init_args: {epoch: 3}}}}}",
        "{model: {class_path: PolicyStage, init_args: {algorithm: Odd, reward: {class_path: mine.Best}}}}",
        "{model: {class_path: PolicyStage, init_args: {reward: {class_path: Good}, algorithm: {class_path: mine.Odd}}}}",
        "{model: {init_args: {policyy: 3}}, data: null}",
        "{model: 3, data: [1]}",
    ],
)
def test_of_what_the_source_does_not_tell_nothing_is_said(text: str) -> None:
    check_keys(yaml.safe_load(text))


def test_the_parameters_that_are_read_are_those_that_python_sees() -> None:
    glance, seen = Glance(closed=True), 0
    modules = [f"rlhf_lightning.{name}.{path.stem}" for name in READ for path in (PACKAGE / name).glob("*.py")]
    found: dict[str, Any] = {}
    for module in modules:
        if not module.endswith(("__init__", "build")):
            found |= {k: v for k, v in vars(importlib.import_module(module)).items() if inspect.isclass(v)}
    for name in glance.classes:
        read = glance._parameters(name)
        if read is None or name not in found:
            continue
        assert set(read) == set(inspect.signature(found[name]).parameters), name
        seen += 1
    assert seen > 40


def test_a_later_config_is_checked_with_the_class_of_an_earlier_one(tmp_path: Path) -> None:
    from rlhf_lightning.run.arguments import Arguments

    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("{model: {init_args: {policy: {laro: {r: 3}}}}}")
    Arguments.of(["fit", "--config", str(overlay)])  # of which class is not known here
    with pytest.raises(UserError, match=r"unknown key 'model.init_args.policy.laro'; did you mean 'lora'\?"):
        Arguments.of(["fit", "--config", "ppo.yaml", "--config", str(overlay)])
