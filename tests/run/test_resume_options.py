"""Every option has an entry for a resumed run that changes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from rlhf_lightning.cli.shipped import SCHEMA
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.kind import is_same_kind
from rlhf_lightning.run.resume_options import (
    OPTIMIZER,
    TABLE,
    Change,
    OnChange,
    changes,
    check_changes,
    check_end,
    entry,
)
from rlhf_lightning.training.optimizers import change_option

SCHEMA_CONTENT = json.loads(SCHEMA.read_text())


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA_CONTENT["$defs"].get(node.get("$ref", "").removeprefix("#/$defs/"), node)
    return found


def _members(family: str) -> list[dict[str, Any]]:
    rules = SCHEMA_CONTENT["$defs"][family]["anyOf"][1]["allOf"]
    return [_resolved(rule["then"]["properties"]["init_args"]) for rule in rules]


def options() -> set[str]:
    """Every option of the schema: of the trainer, of stages and their models, and of data modules."""
    trainer = _resolved(SCHEMA_CONTENT["properties"]["trainer"])["properties"]
    own = [name for name in SCHEMA_CONTENT["properties"] if name not in ("$schema", "trainer", "model", "data")]
    stages = {name for each in _members("LightningModule") if each["title"] != "Stage" for name in each["properties"]}
    model = _resolved({"$ref": "#/$defs/rlhf_lightning.models.config.ModelConfig"})["properties"]
    data = {name for each in _members("LightningDataModule") for name in each["properties"]}
    return {
        *own,
        *(f"trainer.{name}" for name in trainer),
        *(f"model.{name}" for name in stages - {"policy", "model"}),
        *(f"model.{key}.{name}" for key in ("policy", "model") for name in model),
        *(f"data.{name}" for name in data),
    }


def test_no_option_of_the_schema_is_missing_from_the_table() -> None:
    """Add a missing one to `TRAINER`, `STAGE`, `MODEL` or `DATA` of run/resume_options.py: FIXED if in doubt."""
    assert sorted(options() - set(TABLE)) == []
    assert sorted(entry(f"model.{key}.x") is None for key in ("algorithm", "reward", "optimizer")) == [False] * 3


def test_the_table_has_no_option_that_is_not_in_the_schema() -> None:
    wildcards = {"model.class_path", "data.class_path", "model.generation.max_batch_size"}
    wildcards |= {f"model.optimizer.{name}" for names in OPTIMIZER.values() for name in names.split()}
    wildcards |= {f"model.reward.{name}" for name in ("url", "headers", "timeout", "retries", "backoff")}
    assert sorted(set(TABLE) - options() - wildcards) == []


CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_steps": 4, "precision": None, "callbacks": [{"class_path": "A"}]},
    "model": {
        "class_path": "PolicyStage",
        "init_args": {
            "policy": {"name_or_path": "a", "lora": None},
            "algorithm": {"class_path": "PPO", "init_args": {"epochs": 2, "kl": {"coef": 0.1}}},
            "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}},
        },
    },
    "data": {"class_path": "PromptData", "init_args": {"train": "python:list#3", "columns": {}}},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed_everything", 1, "seed_everything is 1, .* has 0; set it to 0 or start a new run from out/export"),
        ("trainer.precision", "bf16-mixed", "trainer.precision is bf16-mixed, .* has null; set it to null"),
        ("model.init_args.algorithm.init_args.epochs", 4, "model.algorithm.epochs is 4, .* has 2"),
        ("model.init_args.algorithm.init_args.kl.coef", 0.2, "model.algorithm.kl.coef is 0.2"),
        ("model.init_args.algorithm", {"class_path": "GRPO", "init_args": {"beta": 1}}, "model.algorithm.class_path is GRPO"),
        ("model.init_args.policy.lora", {"r": 4}, 'model.policy.lora is {"r": 4}, .* has null'),
        ("model.init_args.optimizer.init_args.lr", 0.2, "set it to 0.1, pass --allow_change model.optimizer.lr, or start"),
        ("model.init_args.optimizer.class_path", "Adam", "model.optimizer.class_path is Adam"),
        ("data.init_args.columns", {"prompt": "q"}, "data.columns is"),
        ("trainer.max_steps", 5, None),
        ("trainer.callbacks", [], None),
        ("data.init_args.train", "python:list#7", None),
    ],
)  # fmt: skip
def test_a_change_takes_effect_or_is_refused(key: str, value: Any, said: str | None) -> None:
    found = changes(CONFIG, changed(key, value))
    if said is None:
        assert check_changes(found, [], "out") == []
        return
    with pytest.raises(UserError, match=said):
        check_changes(found, [], "out")
    with pytest.raises(UserError):  # the other way round as well
        check_changes(changes(changed(key, value), CONFIG), [], "out")


def test_a_change_is_allowed_by_name_where_that_has_a_meaning() -> None:
    found = changes(CONFIG, changed("model.init_args.optimizer.init_args.lr", 0.2))
    for name in ("model.optimizer.lr", "model.init_args.optimizer.init_args.lr"):
        assert check_changes(found, [name], "out") == [Change("model.optimizer.lr", 0.1, 0.2)]
    with pytest.raises(UserError, match=r"--allow_change model.algorithm.epochs: it is refused"):
        check_changes([], ["model.algorithm.epochs"], "out")


def test_an_option_that_an_earlier_version_did_not_have_is_no_change() -> None:
    assert changes(CONFIG, changed("model.init_args.new", 3)) == []
    assert changes(changed("trainer.old", None), CONFIG) == []


def test_an_end_that_is_passed_is_refused() -> None:
    check_end([Change("trainer.max_steps", 9, 5)], step=5, epoch=0)
    with pytest.raises(UserError, match=r"trainer.max_steps is 4, and the checkpoint that is resumed has reached 5"):
        check_end([Change("trainer.max_steps", 9, 4)], step=5, epoch=0)
    with pytest.raises(UserError, match=r"trainer.max_epochs is 1, .* has reached 2"):
        check_end([Change("trainer.max_epochs", 3, 1)], step=5, epoch=1)


def test_every_entry_says_what_happens() -> None:
    assert {kind.value for kind in TABLE.values()} == {kind.value for kind in OnChange}


def test_a_schedule_goes_on_with_another_learning_rate() -> None:
    def made(rate: float) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate, betas=(0.5, 0.9))
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=4)

    (optimizer, schedule), (expected, other) = made(0.1), made(0.4)
    for each in (optimizer, schedule, expected, other):
        each.step()
    change_option([optimizer], [schedule], "lr", 0.1, 0.4)
    change_option([optimizer], [schedule], "betas", [0.5, 0.9], [0.1, 0.2])
    assert optimizer.param_groups[0]["betas"] == (0.1, 0.2)
    for _ in range(3):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected.param_groups[0]["lr"])
        assert schedule.get_last_lr() == pytest.approx(other.get_last_lr())
        for each in (optimizer, schedule, expected, other):
            each.step()
    with pytest.raises(UserError, match="AdamW cannot change wrong"):
        change_option([optimizer], [], "wrong", 1, 2)


def test_what_a_config_leaves_open_is_of_the_same_kind(tmp_path: Any) -> None:
    assert is_same_kind(tmp_path, CONFIG)
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    assert is_same_kind(tmp_path, {"model": {"class_path": "x.PolicyStage"}})
    assert is_same_kind(tmp_path, {"model": {"algorithm": "PPO"}})
    assert not is_same_kind(tmp_path, {"model": {"init_args": {"algorithm": "PPO"}, "algorithm": "DPO"}})
    assert not is_same_kind(tmp_path, {"model": {"class_path": "RewardStage"}})
    assert not is_same_kind(tmp_path, {"model": {"policy": {"lora": {"r": 2}}}})


def test_a_saved_config_without_end_is_of_another_kind(tmp_path: Any) -> None:
    doubled = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    for text in (f"a0: &a0 [1]\n{doubled}", "a: &a [*a]\n", "[" * 5000, "a: " + "9" * 6000):
        (tmp_path / "config.yaml").write_text(text)
        assert not is_same_kind(tmp_path, CONFIG)
