"""The check of a config before torch is imported: it finds wrong keys and classes, and accepts what jsonargparse accepts."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.cli import key_check, known_schema
from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.cli.key_check import check_keys
from rlhf_lightning.cli.overrides import as_config
from rlhf_lightning.cli.shipped import SCHEMA
from rlhf_lightning.errors import UserError
from tests.guarded import python_path

ROOT = Path(__file__).parents[2]
IN_FILES = {
    "{modle: {class_path: PolicyStage}}": ["'modle'", "'model'"],
    "{trainer: {max_epoch: 3}}": ["'trainer.max_epoch'", "'max_epochs'"],
    "{max_epochs: 3}": ["'max_epochs'", "'trainer.max_epochs'"],
    "{model: {class_path: PolicyStage, init_args: {policyy: {}}}}": ["'model.init_args.policyy'", "'policy'"],
    "{model: {class_path: PolicyStage, init_args: {policy: {lora: {rank: 3}}}}}": ["policy.lora.rank'", " r, "],
    "{model: {class_path: PolicyStage, init_args: {algorithm: {class_path: PPO, init_args: {epoch: 3}}}}}": [
        "'model.init_args.algorithm.init_args.epoch'",
        "'epochs'",
    ],
    "{model: {class_path: rlhf_lightning.stages.policy.PolicyStage, init_args: {policyy: {}}}}": ["'policy'"],
    "{model: {class_path: PolicyStage, init_args: {evaluation_rewards: {x: {class_path: LengthRewards}}}}}": [
        "model.init_args.evaluation_rewards.x",
        "'LengthReward'",
    ],
    "{trainer: {callbacks: [{class_path: WinRat}]}}": ["'WinRat' for trainer.callbacks", "'WinRate'"],
    "{trainer: {callbacks: {class_path: EarlyStopping, init_args: {monitr: x}}}}": ["monitr", "'monitor'"],
    "{model: {class_path: SupervisedStage, init_args: {algorithm: {class_path: DPO}}}}": [
        "PolicyStage has it, SupervisedStage has not"
    ],
    "{data: {class_path: PlaygroundPrompts, init_args: {batchsize: 3}}}": [
        "'data.init_args.batchsize'",
        "'batch_size'",
    ],
}
IN_WORDS = {
    "ppo --model.algorithm PPOO": ["'PPOO' for model.algorithm", "'PPO'"],
    "ppo --model.algorithm=PPOO": ["'PPO'"],
    "ppo --seed_everythin 1": ["'seed_everythin'", "'seed_everything'"],
    "ppo --modle.x 1": ["'modle'", "'model'"],
    "ppo --trainer.callbacks+=WinRat": ["trainer.callbacks", "'WinRate'"],
    "ppo --trainer.callbacks [Timer,EarlyStoping]": ["'EarlyStopping'"],
    "ppo --trainer.logger Tensorboard": ["trainer.logger", "'TensorBoardLogger'"],
    "ppo --data PromptData --data.train rows.jsonl --model.reward FunctionReward --model.reward.function mine.polite "
    "--model.algorithm GRPPO": ["'GRPO'"],
    "ppo --data Prompt": ["'PromptData'"],
    "ppo --model SFTStage": ["expected one of: PolicyStage, RewardStage, SupervisedStage"],
    "ppo --model.optimizer AdmW": ["'AdamW'"],
    "ppo --model.policy.nam x": ["'model.policy.nam'", "'name_or_path'"],
    "ppo --model.algorithm DPO --model.algorithm.clip_range 0.1": ["PPO", "have it, DPO has not"],
    "sft --model.max_prompt_length 3": ["PolicyStage has it, SupervisedStage has not", "'max_length'"],
    "ppo --model.batch_size 3": ["'model.batch_size'", "'data.batch_size'"],
    "sft --model.lr_scheduler ReduceLROnPlateau": ["lightning.pytorch.cli.ReduceLROnPlateau"],
    "ppo --model.lr 3": ["'optimizer.lr'"],
}
ACCEPTED = [
    "--model.algorithm DPO --model.algorithm.beta 0.3",
    "--model.algorithm.class_path DPO --model.algorithm.init_args.beta 0.3",
    "--model.init_args.algorithm.init_args.epochs 3 --model.algorithm.kl.coef -1",
    "--model.algorithm GRPO --model.algorithm.kl.coef 1",
    "--model.algorithm mine.PPOO --model.algorithm.epoch 3",
    "--model.algorithm PPOO --model.reward mine.Best",
    "--model.algorithm algorithm_here",
    "--model.reward mine.Best --model.evaluation_rewards.new LengthReward",
    "--model.reward mine.polite",
    "--model part.yaml --model.algorithm.nothing 3 --trainer.callbacks+=Own",
    "--model.algorithm algorithm_here --trainer.callbacks+=Own",
    "--model.algorithm mine.Any --model.algorithm PPO --trainer.callbacks+=Own",
    "--trainer more.yaml --trainer.callbacks+=Own",
    "--model.policy.seed 2026-13-45 --trainer.max_time 00:00:01:00",
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
    "--trainer.fast_dev_run true --seed_everything 3 --weights_only true",
    "--trainer.strategy.class_path mine.Strategy --trainer.strategy.init_args.anything 3",
]
UNKNOWN_TO_THE_SCHEMA = [
    "{model: {class_path: mine.PPO, init_args: {policyy: 3}}}",
    "{model: {class_path: PolicyStage, init_args: {algorithm: {class_path: mine.Odd, init_args: {epoch: 3}}}}}",
    "{model: {class_path: PolicyStage, init_args: {algorithm: Odd, reward: {class_path: mine.Best}}}}",
    "{model: {class_path: PolicyStage, init_args: {reward: {class_path: Good}, algorithm: {class_path: mine.Odd}}}}",
    "{model: {init_args: {policyy: 3}}, data: null}",
    "{model: 3, data: [1]}",
]
LIGHT = """
import sys
from rlhf_lightning.__main__ import main
for words in sys.argv[1:]:
    assert main(["fit", "--config", *words.split()]) == 2, words
assert not {"torch", "transformers", "lightning", "jsonargparse"} & set(sys.modules)
"""


def _errors(folder: Path, commands: list[str]) -> list[str]:
    """Run commands that must fail before torch is imported; return their lines."""
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT, *commands],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr.splitlines()


def _assert_named(lines: list[str], expected: list[list[str]]) -> None:
    assert len(lines) == len(expected)
    for line, essentials in zip(lines, expected, strict=True):
        assert line.startswith("error: ")
        assert all(essential in line for essential in essentials), line


def test_faults_of_config_files_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    for number, text in enumerate(IN_FILES):
        (tmp_path / f"{number}.yaml").write_text(text)
    _assert_named(_errors(tmp_path, [f"{number}.yaml" for number in range(len(IN_FILES))]), list(IN_FILES.values()))


def test_faults_of_a_command_line_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    _assert_named(_errors(tmp_path, list(IN_WORDS)), list(IN_WORDS.values()))


def test_a_wrong_key_is_answered_within_two_seconds(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _errors(tmp_path, ["ppo.yaml --model.algorithm.epoch 3"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor: other tests run meanwhile
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize("words", ACCEPTED)
def test_valid_and_undecidable_words_are_accepted(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("algorithm_here", "part.yaml", "more.yaml"):
        Path(name).write_text("class_path: mine.Any\n")
    Arguments.of(["fit", "--config", "ppo.yaml", *words.split()])
    Arguments.of(["fit", *words.split(), "--config", "ppo.yaml"])


@pytest.mark.parametrize("text", UNKNOWN_TO_THE_SCHEMA)
def test_classes_that_the_schema_does_not_describe_are_accepted(text: str) -> None:
    check_keys(yaml.safe_load(text))


def test_no_class_that_has_a_short_name_is_refused() -> None:
    import rlhf_lightning.cli.lightning
    from rlhf_lightning.cli.plugin_families import PLUGIN_FAMILIES, subclasses

    keys = ["model", "data", "model.algorithm", "model.reward", "model.generation"]
    keys += ["trainer.callbacks", "trainer.logger", "model.optimizer", "model.lr_scheduler"]
    seen = 0
    for key, family in zip(keys, PLUGIN_FAMILIES, strict=True):
        for found in subclasses(family):
            theirs = found.__module__.split(".")[0] in ("rlhf_lightning", "torch", "lightning")
            theirs &= found.__name__ not in ("ReduceLROnPlateau", "LightningModule")
            importable = hasattr(sys.modules.get(found.__module__), found.__name__) and found.__name__[0] != "_"
            ours = key != "model" or issubclass(found, rlhf_lightning.stages.stage.Stage)
            if theirs and importable and ours:
                check_keys(as_config(["--model", "PolicyStage", f"--{key}", found.__name__], dict), typed=True)
                seen += 1
    assert seen > 80


def test_a_later_config_is_checked_with_the_class_of_an_earlier_one(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("{model: {init_args: {policy: {laro: {r: 3}}}}}")
    with pytest.raises(UserError, match="model has arguments and no class"):
        Arguments.of(["fit", "--config", str(overlay)])
    with pytest.raises(UserError, match=r"unknown key 'model.init_args.policy.laro'; did you mean 'lora'\?"):
        Arguments.of(["fit", "--config", "ppo.yaml", "--config", str(overlay)])


def test_another_version_of_a_package_may_have_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"trainer": {"max_epoch": 3}}
    ours = {"model": {"class_path": "PolicyStage", "init_args": {"policyy": 3}}}
    schema = json.loads(SCHEMA.read_text())
    schema["x-versions"]["lightning"] = "1.0"
    monkeypatch.setattr(key_check, "load_schema", lambda: known_schema.KnownSchema(schema))
    check_keys(trainer)
    check_keys({"trainer": {"callbacks": "NewCallback"}})
    with pytest.raises(UserError, match="policyy"):
        check_keys(ours)


def test_a_parameter_and_a_class_that_the_source_has_are_accepted_although_the_schema_is_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = json.loads(SCHEMA.read_text())
    del schema["$defs"]["rlhf_lightning.algorithms.ppo.PPO"]["properties"]["clip_range"]
    rules = schema["$defs"]["Algorithm"]["anyOf"][1]["allOf"]
    rules[:] = [rule for rule in rules if "DPO" not in rule["if"]["properties"]["class_path"]["enum"]]
    monkeypatch.setattr(key_check, "load_schema", lambda: known_schema.KnownSchema(schema))
    check_keys(
        as_config(["--model", "PolicyStage", "--model.algorithm", "PPO", "--model.algorithm.clip_range", "1"], dict)
    )
    check_keys(as_config(["--model", "PolicyStage", "--model.algorithm", "DPO"], dict))
    with pytest.raises(UserError, match="clip_rang"):
        check_keys(
            as_config(["--model", "PolicyStage", "--model.algorithm", "PPO", "--model.algorithm.clip_rang", "1"], dict)
        )
