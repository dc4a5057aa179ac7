"""Every bad input gets one clear line on standard error and a non-zero exit, before weights are loaded where that is possible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlhf_lightning.__main__ import main
from rlhf_lightning.models import loading

SMALL = ["--model.iterations", "1", "--data.size", "8", "--data.validation_size", "4", "--data.batch_size", "4"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail; the one line it says."""

    def run(*words: str, status: int = 2) -> str:
        assert main(words) == status
        said = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in said if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert not any("Traceback" in line for line in said)
        return errors[0]

    return run


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is a failure of the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rlhf_lightning.training.roles.load_causal_lm", refuse)
    monkeypatch.setattr("rlhf_lightning.stages.supervised.load_causal_lm", refuse)
    monkeypatch.setattr("rlhf_lightning.stages.reward.load_reward_model", refuse)
    assert loading.load_causal_lm is not refuse


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--modle", "x"], ["'modle'", "'model'"]),
        (["--model.algorithm.epoch", "3"], ["epoch", "did you mean 'epochs'?"]),
        (["--model.algorithm.kl.coeff", "1"], ["kl.coeff", "coef"]),
        (["--model.init_args.iteration", "3"], ["iteration", "did you mean 'iterations'?"]),
        (["--data.batchsize", "3"], ["batchsize", "did you mean 'batch_size'?"]),
        (["--model.optimizer.lrr", "1"], ["lrr", "did you mean 'lr'?"]),
        (["--model.algorithm", "PPPO"], ["PPPO", "did you mean 'PPO'?"]),
        (["--model.reward", "ModelRewad"], ["ModelRewad", "did you mean 'ModelReward'?"]),
        (["--data", "PlaygroundPromps"], ["PlaygroundPromps", "did you mean 'PlaygroundPrompts'?"]),
        (["--trainer.callbacks+=EarlyStoping"], ["EarlyStoping", "did you mean 'EarlyStopping'?"]),
        (["--model.algorithm.epochs", "abc"], ["epochs must be int", "'abc'"]),
        (["--model.reward", "LengthReward"], ["limit is required and not given"]),
        (["--model.reference", "nf5"], ["reference must be one of", "'nf5'"]),
        (
            ["--trainer.precision", "bf17"],
            ["precision must be one of 64, 32, 16 or one of 'transformer-engine'", "'bf17'"],
        ),
        (["-data.batch_size", "4"], ["-data.batch_size begins with one dash; did you mean '--data.batch_size'?"]),
        (
            ["--model.algorithm", "DPO", "--model.algorithm.responses_per_prompt", "1"],
            ["responses_per_prompt is 1", "2 or more"],
        ),
        (
            ["--model.algorithm", "REINFORCE", "--model.algorithm.responses_per_prompt", "1"],
            ["leave_one_out", "2 or more"],
        ),
        (["--model.algorithm.minibatches", "0"], ["minibatches is 0", "1 or more"]),
        (
            [*SMALL, "--model.algorithm.minibatches", "5"],
            ["PPO.minibatches is 5", "of 4 rows", "fill 4 optimiser steps"],
        ),
        (["--data.size", "3", "--model.algorithm.minibatches", "4"], ["of 3 rows", "data.batch_size 128"]),
        (["--model.algorithm.clip_range", ".nan"], ["PPO.clip_range is nan"]),
        (["--model.algorithm.kl.coef", ".inf"], ["kl.coef is inf"]),
        (["--model.generation.temperature", ".nan"], ["generation.temperature is nan"]),
        (["--model.iterations", "0"], ["model.iterations is 0", "at least 1"]),
        (["--model.max_prompt_length", "-3"], ["model.max_prompt_length is -3", "at least 1"]),
        (["--model.max_length", "1"], ["model.max_length is 1", "at least 2"]),
        (["--model.policy.lora.r", "0"], ["lora.r is 0", "at least 1"]),
        (["--model.policy.lora.dropout", "2"], ["lora.dropout is 2", "below 1"]),
        (["--trainer.accumulate_grad_batches", "0"], ["accumulate_grad_batches is 0", "from 1 on"]),
        (["--model.reward", "ServerReward", "--model.reward.url", "localhost:8000"], ["'localhost:8000'", "http://"]),
        (
            ["--model.reward", "ServerReward", "--model.reward.url", "http://localhost", "--model.reward.retry", "3"],
            ["retry", "did you mean 'retries'?"],
        ),
        (
            ["--model.reward", "FunctionReward", "--model.reward.function", "a.b", "--model.reward.timeout", "0"],
            ["timeout is 0", "null for no limit"],
        ),
        (["--model.reward", "null"], ["PPO learns from rewards and there is none", "model.reward"]),
        (["--model.algorithm", "DPO", "--model.reward", "null"], ["no reward", "no pairs", "PreferenceData"]),
        (["--model.policy.name_or_path", "playground/sftt"], ["playground/sftt", "playground/sft"]),
        (["--model.generation.max_new_tokens", "120"], ["prompt of row 0", "context of 128", "max_prompt_length: 8"]),
        (["--model.generation.max_new_tokens", "128"], ["128 leaves no room for a prompt", "context of 128; lower it"]),
        (["--model.policy.lora.target_modules", "[nope]"], ["lora.target_modules is ['nope']", "not found"]),
        (["--model.policy.stop_tokens", "[nope]"], ["'nope'", "vocabulary"]),
        (["--model.reference", "adapter"], ["adapter", "policy.lora"]),
    ],
)
def test_a_config_that_cannot_work(fails: Callable[..., str], words: list[str], expected: list[str]) -> None:
    line = fails("fit", "--config", "ppo.yaml", *words)
    assert all(micro_batch in line for micro_batch in expected), line


@pytest.mark.usefixtures("no_weights")
def test_a_prompt_that_is_too_long_is_named_by_its_line(fails: Callable[..., str]) -> None:
    prompts = ["please say dog"] * 16 + ["please say dog " * 60, "hi"]
    Path("long.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    line = fails("fit", "--config", "ppo.yaml", "--data", "PromptData", "--data.train", "long.jsonl")
    assert "prompt of long.jsonl:17 has" in line


@pytest.mark.usefixtures("no_weights")
def test_a_validation_that_never_comes(fails: Callable[..., str]) -> None:
    line = fails("fit", "--config", "ppo.yaml", *SMALL, "--trainer.val_check_interval", "500")
    assert "trainer.val_check_interval is 500 and an epoch has 8 batches" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["EarlyStopping", "val_reward"], "EarlyStopping: no metric is called 'val_reward'; did you mean 'val/reward/"),
        (["ModelCheckpoint", "val/reward/men"], "ModelCheckpoint: no metric is called 'val/reward/men'; did you mean"),
    ],
)
def test_a_metric_that_is_never_measured_is_named_before_the_first_step(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a rollout was collected")

    monkeypatch.setattr("rlhf_lightning.training.rollout_session.RolloutSession.collect", refuse)
    callback, monitor = words
    given = [f"--trainer.callbacks={callback}", f"--trainer.callbacks.monitor={monitor}"]
    assert expected in fails("fit", "--config", "ppo.yaml", *SMALL, *given)


def test_configs_that_cannot_be_read(fails: Callable[..., str]) -> None:
    assert "did you mean 'ppo.yaml'?" in fails("fit", "--config", "pppo.yaml")
    Path("broken.yaml").write_text("model:\n  a: [1\n")
    assert "broken.yaml:3" in fails("fit", "--config", "broken.yaml")
    Path("twice.yaml").write_text("trainer: {max_steps: 1}\ndata:\n  class_path: A\ntrainer: {devices: 1}\n")
    assert "twice.yaml:4 is not valid YAML: the key 'trainer' is duplicate" in fails("fit", "--config", "twice.yaml")
    Path("part.yaml").write_text("data:\n  class_path: PlaygroundPrompts\n")
    assert "error: model is required and not given" in fails("fit", "--config", "part.yaml")
    Path("list.yaml").write_text("- 1\n")
    assert "must hold keys" in fails("fit", "--config", "list.yaml")
    Path("typo.yaml").write_text("model:\n  init_args:\n    algorithm:\n      init_args:\n        epoch: 3\n")
    assert "did you mean 'epochs'?" in fails("fit", "--config", "ppo.yaml", "--config", "typo.yaml")
    assert "did you mean 'fit'?" in fails("fitt", "--config", "ppo.yaml")


def prompts_config(path: str, **init_args: Any) -> list[str]:
    Path("data.yaml").write_text(
        json.dumps({"data": {"class_path": "PromptData", "init_args": {"train": path, **init_args}}})
    )
    return ["fit", "--config", "ppo.yaml", "--config", "data.yaml"]


@pytest.mark.usefixtures("no_weights")
def test_data_that_cannot_be_used(fails: Callable[..., str]) -> None:
    line = fails(*prompts_config("absent.jsonl"))
    assert line.endswith("data file absent.jsonl is not there; there is no data file in .")
    Path("folder.jsonl").mkdir()
    assert "folder.jsonl is a folder; give a file of it" in fails(*prompts_config("folder.jsonl"))
    Path("rows.jsonl").write_text('{"prompt": "name one fruit ."}\n{"prompt": "name \n')
    line = fails(*prompts_config("rows.jsonl"))
    assert "rows.jsonl:2: not JSON: Unterminated string starting at column 12" in line
    assert "on_bad_row: skip" in line
    Path("rows.jsonl").write_text('{"prompt": "name one fruit ."}\n{"prompt": ""}\n')
    assert "rows.jsonl:2: column 'prompt' is empty" in fails(*prompts_config("rows.jsonl"))
    Path("rows.jsonl").write_text('{"prompt": 3}\n')
    assert "rows.jsonl:1: column 'prompt' must be text or a list of messages, found int" in fails(
        *prompts_config("rows.jsonl")
    )
    Path("rows.jsonl").write_text('{"prompt": "name one fruit ."}\n')
    assert "rows.jsonl: rows 1, held out 1, left to learn from 0" in fails(*prompts_config("rows.jsonl"))
    Path("rows.jsonl").write_text("")
    assert "empty" in fails(*prompts_config("rows.jsonl"))
    Path("rows.jsonl").write_text('{"promt": "name one fruit .", "answer": 1}\n')
    line = fails(*prompts_config("rows.jsonl"))
    assert "no column 'prompt'" in line
    assert "answer, promt" in line
    assert "did you mean 'promt'?" in line
    Path("rows.csv").write_text("prompt\n\n")
    assert "rows.csv" in fails(*prompts_config("rows.csv"))
    Path("rows.jsonl").write_text(json.dumps({"prompt": "name one fruit . " * 60}) + "\n")
    line = fails(*prompts_config("rows.jsonl", validation_fraction=0))
    assert "prompt of rows.jsonl:1 has 240 tokens" in line
    assert "context of 128" in line


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("key", "least"), [("limit", 1), ("batch_size", 1), ("validation_batch_size", 1), ("num_workers", 0)]
)
def test_a_number_of_the_data_that_is_too_small(fails: Callable[..., str], key: str, least: int) -> None:
    Path("rows.jsonl").write_text('{"prompt": "name one fruit ."}\n' * 4)
    line = fails(*prompts_config("rows.jsonl", **{key: least - 1}))
    assert f"data.{key} is {least - 1}; it must be at least {least}" in line


@pytest.mark.usefixtures("no_weights")
def test_rows_of_another_stage(fails: Callable[..., str]) -> None:
    small = ["--data.size", "8", "--data.validation_size", "4"]
    line = fails("fit", "--config", "sft.yaml", "--data", "PlaygroundPreferences", *small)
    assert "SupervisedStage learns from columns prompt and completion" in line
    assert "the train data has: prompt, chosen, rejected" in line
    line = fails("fit", "--config", "reward.yaml", "--data", "PlaygroundPrompts", *small)
    assert "RewardStage learns from pairs, rankings or ratings" in line
    Path("rated.jsonl").write_text('{"prompt": "2+2?", "response": "4", "rating": 1}\n' * 4)
    rated = ["--data", "RatingData", "--data.train", "rated.jsonl", "--data.validation_fraction", "0"]
    line = fails("fit", "--config", "reward.yaml", *rated)
    assert "no row of the train data has two with different ratings; set it to regression" in line
    Path("rows.jsonl").write_text('{"query": "2+2?", "completion": "4"}\n')
    line = fails("fit", "--config", "sft.yaml", "--data", "InstructionData", "--data.train", "rows.jsonl")
    assert "no column 'prompt' and no 'messages' among completion, query; say which it is with data.columns" in line


@pytest.mark.usefixtures("no_weights")
def test_a_folder_that_is_no_model_and_a_template_that_is_none(fails: Callable[..., str]) -> None:
    Path("empty").mkdir()
    line = fails("fit", "--config", "ppo.yaml", *SMALL, "--model.policy.name_or_path", "empty")
    assert "the folder empty holds no model; a model's folder has a config.json" in line
    Path("chat.jsonl").write_text(
        "".join(f'{{"prompt": [{{"role": "user", "content": "hello there {i}"}}]}}\n' for i in range(4))
    )
    for template, said in {"{% for %}": "", "{{ raise_exception('only dogs') }}": "only dogs"}.items():
        line = fails(*prompts_config("chat.jsonl"), f"--model.policy.chat_template={template}")
        assert "the chat template cannot render the conversation that begins with 'user: hello there" in line
        assert said in line


def test_what_init_cannot_write(fails: Callable[..., str]) -> None:
    Path("file").write_text("")
    assert "file/x/configs" in fails("init", "file/x")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        ("bert", {}, "is a BertForSequenceClassification, an encoder, whose classifier does not read"),
        ("llama", {"num_labels": 3}, "is a classifier with 3 outputs, and a reward model has one"),
        ("llama", {"vocab_size": 5}, "tokens and the model has embeddings for 5"),
    ],
)
def test_a_classifier_that_is_no_reward_model(
    fails: Callable[..., str], kind: str, sizes: dict[str, int], said: str
) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, **{"num_labels": 1, **small, **sizes})
    config.architectures = [f"{kind.capitalize()}ForSequenceClassification"]
    config.save_pretrained("scores")
    Path("scores/model.safetensors").write_text("none")
    given = ("name_or_path=scores", "tokenizer=playground/sft")
    assert said in fails("fit", "--config", "ppo.yaml", *SMALL, *(f"--model.reward.{word}" for word in given))
    words = ("fit", "--config", "reward.yaml", "--model.model.config", "null")
    assert said in fails(*words, *(f"--model.model.{word}" for word in given))


REWARDS = """
import math

def raises(responses):
    raise KeyError("oops")

def too_few(responses):
    return [0.0] * (len(responses) - 1)

def not_a_number(responses):
    return [math.nan] * len(responses)

def nothing(responses):
    return None

def words(responses):
    return ["good"] * len(responses)

def wants(responses, solution):
    return [0.0] * len(responses)
"""


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("raises", ["raised KeyError", "oops"]),
        ("too_few", ["returned 3 scores for 4 completions"]),
        ("not_a_number", ["scored none of the 4 responses", "set model.on_unscored to warn"]),
        ("nothing", ["returned None", "4 scores"]),
        ("words", ["'good'", "a number or None"]),
        ("wants", ["'solution'", "no column"]),
        ("absent", ["no function 'absent'"]),
    ],
)
def test_a_reward_that_misbehaves(fails: Callable[..., str], function: str, expected: list[str]) -> None:
    Path("my_rewards.py").write_text(REWARDS)
    line = fails(
        *("fit", "--config", "ppo.yaml", *SMALL),
        *("--model.reward", "FunctionReward", "--model.reward.function", f"my_rewards.py:{function}"),
    )
    assert all(micro_batch in line for micro_batch in expected), line


@pytest.mark.usefixtures("no_weights")
def test_a_column_that_a_reward_needs_and_the_rows_do_not_have(fails: Callable[..., str]) -> None:
    Path("my_rewards.py").write_text("def wants(responses, solution, **columns):\n    return [0.0] * len(responses)\n")
    Path("rows.jsonl").write_text('{"prompt": "2+2?", "completion": "4", "solutions": "4"}\n' * 8)
    wants = "{class_path: FunctionReward, init_args: {function: my_rewards.wants}}"
    number = "{class_path: NumberReward, init_args: {column: solutoins}}"
    rows = ("--data.train", "rows.jsonl", "--data.validation", "rows.jsonl")
    ppo = ("fit", "--config", "ppo.yaml", "--data", "PromptData", *rows)
    said = (
        "reward function my_rewards.wants has the parameter 'solution', which is no column of the {}; "
        "did you mean 'solutions'?"
    )
    assert said.format("train data") in fails(*ppo, f"--model.reward={wants}")
    assert said.format("validation data") in fails(*ppo, f"--model.evaluation_rewards={{own: {wants}}}")
    both = f"{{class_path: WeightedSum, init_args: {{rewards: {{number: {number}}}}}}}"
    assert (
        "NumberReward.column is 'solutoins', which is no column of the train data; did you mean 'solutions'?"
        in fails(*ppo, f"--model.reward={both}")
    )
    sft = ("fit", "--config", "sft.yaml", "--data", "InstructionData", *rows)
    assert said.format("validation data") in fails(*sft, f"--model.evaluation_rewards={{own: {wants}}}")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("function", ["unfinished.f", "unfinished.py:f"])
def test_a_reward_function_in_a_file_that_is_no_python(fails: Callable[..., str], function: str) -> None:
    Path("unfinished.py").write_text("\ndef f(responses:\n")
    words = ["--model.reward", "FunctionReward", "--model.reward.function", function]
    line = fails("fit", "--config", "ppo.yaml", *SMALL, *words)
    assert f"reward function {function}: " in line
    assert "unfinished.py:2 is not valid Python: '(' was never closed" in line


def test_a_tokenizer_without_pad_or_stop_token(fails: Callable[..., str], tokenizer: Any) -> None:
    for name, missing in (("pad_token", "no pad token"), ("eos_token", "no end-of-sequence token")):
        tokenizer.save_pretrained(name)
        path = Path(name) / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        settings.pop(name)
        path.write_text(json.dumps(settings))
        assert missing in fails("fit", "--config", "ppo.yaml", "--model.policy.tokenizer", name)


def test_what_is_written_stays(fails: Callable[..., str]) -> None:
    folder = Path("mine")
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,loss\n1,2\n")
    fails("fit", "--config", "ppo.yaml", "--model.algorithm.epochs", "x", "--trainer.default_root_dir", "mine")
    assert (folder / "metrics.csv").read_text() == "step,loss\n1,2\n"
    Path("configs").mkdir()
    Path("configs/ppo.yaml").write_text("mine")
    assert "exists already" in fails("init", ".")
    assert Path("configs/ppo.yaml").read_text() == "mine"


def test_a_traceback_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RLHF_LIGHTNING_DEBUG", "1")
    assert main(["fit", "--config", "absent.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err
