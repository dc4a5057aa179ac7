"""A LoRA run with four roles on one base: learns as on bases of their own, goes on bit for bit, leaves a plain adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from leavings import ROLLOUTS, SMALL, equal, metrics, weights
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf_lightning.__main__ import main
from rlhf_lightning.models.loading import resolve_path

REWARD = ["--config", "reward.yaml", "--model.model.lora", '{"r": 4, "alpha": 8}', "--trainer.max_steps", "2"]
PPO = [
    *["--config", "ppo.yaml", "--config", "lora.yaml", "--model.critic", "separate", *ROLLOUTS, *SMALL],
    *["--model.algorithm.epochs", "1", "--model.algorithm.minibatches", "2"],
]
UNMEASURED = ["--trainer.limit_val_batches", "0"]
QUIET = [*UNMEASURED, "--trainer.enable_progress_bar", "false"]
EVERY_STEP = """
trainer:
  callbacks:
    - class_path: Checkpoints
      init_args: {every_n_steps: 1, keep: 100}
"""


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a reward model that was trained as an adapter of playground/sft."""
    folder = tmp_path_factory.mktemp("reward")
    assert main(["fit", *REWARD, *SMALL, *QUIET, "--trainer.default_root_dir", str(folder)]) == 0
    return str(folder / "export")


def test_four_roles_on_one_base_learn_what_they_learn_on_bases_of_their_own(
    reward: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*PPO, "--model.reward.name_or_path", reward, "--trainer.val_check_interval", "1.0"]
    one = run("one", "fit", *words)
    assert (
        f"the reward model {reward} shares the policy's base (set model.share_base to false" in capsys.readouterr().out
    )
    four = run("four", "fit", *words, "--model.share_base", "false")
    assert "shares" not in capsys.readouterr().out
    for first, second in zip(metrics(one), metrics(four), strict=True):
        local_rows = {name: float(value) for name, value in first.items() if value}
        assert local_rows == pytest.approx(
            {name: float(value) for name, value in second.items() if value}, abs=1e-4, rel=1e-4
        )
    shared, separate = weights(one / "export"), weights(four / "export")
    adapters = [name for name in shared if name.startswith("adapter_model/")]
    assert adapters == [name for name in separate if name.startswith("adapter_model/")]
    assert all(torch.allclose(shared[name], separate[name], atol=1e-5) for name in adapters)
    critic = {name for name in shared if name.startswith("critic/")}
    assert {name for name in critic if "lora" not in name} == {"critic/head.weight", "critic/head.bias"}
    assert len(critic) == len(adapters) + 2
    base = AutoModelForCausalLM.from_pretrained(resolve_path("playground/sft"))
    policy = PeftModel.from_pretrained(base, str(one / "export"))
    assert list(policy.peft_config) == ["default"]


def test_a_run_with_a_critic_on_an_adapter_goes_on_bit_for_bit_and_with_that_critic_only(
    reward: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("every_step.yaml").write_text(EVERY_STEP)
    words = [*PPO, *UNMEASURED, "--model.reward.name_or_path", reward, "--config", "every_step.yaml"]
    whole = run("whole", "fit", *words)
    checkpoint = torch.load(whole / "checkpoints/step-3.ckpt", weights_only=True)
    names = {name.split(".")[-2] if "lora" in name else name for name in checkpoint["state_dict"]}
    assert names == {"default", "critic", "policy.critic.head.weight", "policy.critic.head.bias"}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(checkpoint["state_dict"])
    resumed = run("resumed", "fit", *words, "--ckpt_path", "whole/checkpoints/step-3.ckpt")
    assert equal(weights(resumed / "export"), weights(whole / "export"))
    assert int(metrics(whole)[-1]["step"]) > 3
    again = ["fit", *words, *QUIET, "--model.share_base", "false", "--trainer.default_root_dir", "other"]
    capsys.readouterr()
    assert main([*again, "--ckpt_path", "whole/checkpoints/step-3.ckpt"]) == 2
    assert "model.share_base is false, and the run that is resumed has true" in capsys.readouterr().err
