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

from rlhf_lightning.cli import messages
from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.cli.early_check import READ, SourceIndex, check_keys
from rlhf_lightning.cli.overrides import as_config
from rlhf_lightning.cli.plugin_files import PACKAGE
from rlhf_lightning.errors import UserError

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
    "{trainer: {callbacks: [{class_path: WinRat}]}}": (
        "there is no class 'WinRat' for trainer.callbacks; did you mean 'WinRate'?"
    ),
    "{model: {class_path: SupervisedStage, init_args: {algorithm: {class_path: DPO}}}}": (
        "unknown key 'model.init_args.algorithm'; PolicyStage has it, SupervisedStage has not"
    ),
    "{model: {class_path: PolicyStage, init_args: {reward: {class_path: mine.polite}}}}": (
        "model.init_args.reward wants a class, and mine.polite is a function; "
        "write {class_path: FunctionReward, init_args: {function: mine.polite}}"
    ),
    "{data: {class_path: PlaygroundPrompts, init_args: {batchsize: 3}}}": (
        "unknown key 'data.init_args.batchsize'; did you mean 'batch_size'?"
    ),
}
WORDS = {
    "ppo --model.algorithm PPOO": "there is no class 'PPOO' for model.algorithm; did you mean 'PPO'?",
    "ppo --model.algorithm=PPOO": "there is no class 'PPOO' for model.algorithm; did you mean 'PPO'?",
    "ppo --trainer.callbacks+=WinRat": "there is no class 'WinRat' for trainer.callbacks; did you mean 'WinRate'?",
    "ppo --trainer.callbacks [Timer,EarlyStoping]": (
        "there is no class 'EarlyStoping' for trainer.callbacks; did you mean 'EarlyStopping'?"
    ),
    "ppo --trainer.logger Tensorboard": (
        "there is no class 'Tensorboard' for trainer.logger; did you mean 'TensorBoardLogger'?"
    ),
    "ppo --data PromptData --data.train rows.jsonl --model.reward FunctionReward --model.reward.function mine.polite "
    "--model.algorithm GRPPO": "there is no class 'GRPPO' for model.algorithm; did you mean 'GRPO'?",
    "ppo --data Prompt": "there is no class 'Prompt' for data; did you mean 'PromptData'?",
    "ppo --model SFTStage": (
        "there is no class 'SFTStage' for model; expected one of: PolicyStage, RewardStage, SupervisedStage"
    ),
    "ppo --model.optimizer AdmW": "there is no class 'AdmW' for model.optimizer; did you mean 'AdamW'?",
    "ppo --model.reward mine.polite": (
        "model.reward wants a class, and mine.polite is a function; "
        "write --model.reward FunctionReward --model.reward.function mine.polite"
    ),
    "ppo --model.policy.nam x": "unknown key 'model.policy.nam'; did you mean 'name_or_path'?",
    "ppo --model.algorithm DPO --model.algorithm.clip_range 0.1": (
        "unknown key 'model.algorithm.clip_range'; GRPO and PPO have it, DPO has not"
    ),
    "sft --model.algorithm DPO": "unknown key 'model.algorithm'; PolicyStage has it, SupervisedStage has not",
    "sft --model.max_prompt_length 3": (
        "unknown key 'model.max_prompt_length'; PolicyStage has it, SupervisedStage has not; did you mean 'max_length'?"
    ),
    "ppo --model.batch_size 3": "unknown key 'model.batch_size'; did you mean 'data.batch_size'?",
    "sft --model.lr_scheduler ReduceLROnPlateau": (
        "model.lr_scheduler: write lightning.pytorch.cli.ReduceLROnPlateau, which is told what to monitor"
    ),
    "ppo --model.lr 3": "unknown key 'model.lr'; did you mean 'optimizer.lr'?",
}
FINE = [
    "--model.algorithm DPO --model.algorithm.beta 0.3",
    "--model.algorithm.class_path DPO --model.algorithm.init_args.beta 0.3",
    "--model.init_args.algorithm.init_args.epochs 3 --model.algorithm.kl.coef -1",
    "--model.algorithm GRPO --model.algorithm.kl.coef 1",
    "--model.algorithm mine.PPOO --model.algorithm.epoch 3",
    "--model.algorithm PPOO --model.reward mine.Best",
    "--model.algorithm algorithm_here",
    "--model.reward mine.Best --model.evaluation_rewards.new LengthReward",
    "--model.reward mine.made",
    "--model.reward mine.quoted",
    "--model.reward packed.polite",
    "--model part.yaml --model.algorithm.nothing 3 --trainer.callbacks+=Own",
    "--model.algorithm algorithm_here --trainer.callbacks+=Own",
    "--model.algorithm mine.Any --model.algorithm PPO --trainer.callbacks+=Own",
    "--trainer more.yaml --trainer.callbacks+=Own",
    "--model.policy.seed 2026-13-45 --trainer.max_time 00:00:01:00",
    "--model.reward mine.wrapped",
    "--model.reward FunctionReward --model.reward.function mine.polite",
    "--model.reward null --model.generation.max_new_tokens 3",
    "--model.optimizer SGD --model.optimizer.momentum 0.3 --model.optimizer.dict_kwargs.x 1",
    "--model.optimizer bitsandbytes.optim.AdamW8bit --model.lr_scheduler StepLR --model.lr_scheduler.step_size 3",
    "--trainer.callbacks Timer --trainer.callbacks.duration 3 --trainer.callbacks+=callbacks.mine.Mine",
    "--trainer.callbacks+={class_path:EarlyStopping,init_args:{monitor:x}} --trainer.callbacks+ WinRate",
    "--trainer.callbacks+=OnExceptionCheckpoint --trainer.logger CSVLogger --trainer.logger.save_dir x",
    "--data PromptData --data.train x.jsonl --data.columns.prompt question --data.batch_size=3",
    "--data mine.Rows --data.anything 3",
    "--model.help PPOO",
    "--trainer.fast_dev_run true --seed_everything 3",
]
MINE = """
import functools
from rlhf_lightning.rewards import LengthReward
def polite(responses) -> list[float]: ...
def made(limit: int = 3) -> LengthReward: ...
def quoted() -> "LengthReward": ...
@functools.cache
def wrapped(): ...
"""
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
    (tmp_path / "mine.py").write_text(MINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[2:] == [f"error: {line}" for line in FAULTS.values()]


def test_faults_of_the_words_of_a_command_come_before_torch(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    light = LIGHT.replace('["fit", "--config", name]', '["fit", "--config", *name.split()]')
    command = [sys.executable, "-c", light, *WORDS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[2:] == [f"error: {line}" for line in WORDS.values()]


@pytest.mark.parametrize("words", FINE)
def test_of_words_that_may_be_meant_nothing_is_said(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("packed.py").write_text(MINE)
    Path("packed").mkdir()
    for name in ("algorithm_here", "part.yaml", "more.yaml"):
        Path(name).write_text("class_path: mine.Any\n")
    Arguments.of(["fit", "--config", "ppo.yaml", *words.split()])
    Arguments.of(["fit", *words.split(), "--config", "ppo.yaml"])


def test_no_class_that_the_command_line_knows_by_its_name_is_refused() -> None:
    import rlhf_lightning.cli.lightning  # noqa: F401  (imports all that has a short name)

    seen = 0
    bases = {"model": "model", "data": "data", "trainer.callbacks": "callbacks", "trainer.logger": "logger"}
    bases |= {"model.optimizer": "optimizer", "model.lr_scheduler": "lr_scheduler", "model.reward": "reward"}
    for path, key in {**bases, "model.algorithm": "algorithm", "model.generation": "generation"}.items():
        for found in messages._subclasses(messages._bases()[key]):
            theirs = found.__module__.split(".")[0] in ("rlhf_lightning", "torch", "lightning")
            theirs &= not found.__name__.startswith("_Object")  # made for an object that rlhf_lightning.fit was given
            theirs &= found.__name__ != "ReduceLROnPlateau"  # which torch and Lightning both have, so neither is meant
            if theirs and hasattr(sys.modules[found.__module__], found.__name__):  # Lightning makes some while it runs
                check_keys(as_config(["--model", "PolicyStage", f"--{path}", found.__name__], dict), typed=True)
                seen += 1
    assert seen > 80


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
    index, seen = SourceIndex(closed=True), 0
    modules = [f"rlhf_lightning.{name}.{path.stem}" for name in READ for path in (PACKAGE / name).glob("*.py")]
    found: dict[str, Any] = {}
    for module in modules:
        if not module.endswith(("__init__", "build")):
            found |= {k: v for k, v in vars(importlib.import_module(module)).items() if inspect.isclass(v)}
    for name in index.classes:
        read = index._parameters(name)
        if read is None or name not in found:
            continue
        assert set(read) == set(inspect.signature(found[name]).parameters), name
        seen += 1
    assert seen > 40


def test_a_later_config_is_checked_with_the_class_of_an_earlier_one(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("{model: {init_args: {policy: {laro: {r: 3}}}}}")
    Arguments.of(["fit", "--config", str(overlay)])  # of which class is not known here
    with pytest.raises(UserError, match=r"unknown key 'model.init_args.policy.laro'; did you mean 'lora'\?"):
        Arguments.of(["fit", "--config", "ppo.yaml", "--config", str(overlay)])
