"""Critics: zero before they learn, and reading the state before each token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.models.adapters import adapter_view
from rlhf_lightning.models.backbone import backbone_of
from rlhf_lightning.models.critics import AdapterCritic, SeparateCritic, SharedCritic
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.shared_base import SharedBase, add_critic_adapter
from rlhf_lightning.rewards import RandomReward
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.types import Rows
from tests.conftest import ARCHITECTURES
from tests.holes import with_holes

Folder = Callable[[str], str]


@pytest.fixture(params=["whole", "holes"])
def rows(request: pytest.FixtureRequest) -> Rows:
    """Two rows, one prompt left padded, one response shorter."""
    tokens = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    prompt_mask, mask = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    prompt_mask[0, :2], mask[1, 3:] = False, False
    rows = Rows(tokens, prompt_mask, mask, torch.arange(2), mask[:, -1])
    return with_holes(rows) if request.param == "holes" else rows


def policy_with(kind: type[SharedCritic], folder: str) -> Policy:
    model = load_causal_lm(ModelConfig(folder))
    critic = SharedCritic(32) if kind is SharedCritic else SeparateCritic(load_causal_lm(ModelConfig(folder)), 32)
    return Policy(model, critic)


@pytest.mark.parametrize("kind", [SharedCritic, SeparateCritic])
@torch.no_grad()
def test_a_critic_reads_the_state_before_each_token(
    kind: type[SharedCritic], tiny_model_folder: Folder, rows: Rows
) -> None:
    policy = policy_with(kind, tiny_model_folder("gpt2"))
    assert policy.critic is not None
    head: nn.Linear = policy.critic.head  # type: ignore[assignment]
    assert not policy(rows).values.any()  # it expects nothing before it learned something
    head.weight.copy_(torch.linspace(-1, 1, 32)[None])
    head.bias.fill_(0.5)
    values: Tensor = policy(rows).values
    assert not values[~rows.mask].any()
    for row in range(2):  # by transformers alone, without padding
        prompt, length = rows.tokens[row, :4][rows.prompt_mask[row]], int(rows.reach[row])
        ids = torch.cat([prompt, rows.tokens[row, 4 : 4 + length]])[None]
        states = policy.model(ids, output_hidden_states=True).hidden_states[-1][0]  # type: ignore[operator]
        expected = head(states[len(prompt) - 1 : -1]).squeeze(-1)
        torch.testing.assert_close(values[row, :length], expected * rows.mask[row, :length], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "separate", "adapter"])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("limit", [None, 12])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_the_value_behind_a_truncated_response(
    kind: str, pack: bool, limit: int | None, arch: str, tiny_model_folder: Folder, rows: Rows
) -> None:
    """By transformers alone, without padding; a row that ended, and one without a chosen token, have none."""
    lora = LoraOptions(r=4) if kind == "adapter" else None
    config = ModelConfig(tiny_model_folder(arch), pack=pack, max_tokens_per_batch=limit, lora=lora)
    if kind == "adapter":
        model = load_causal_lm(config)
        add_critic_adapter(SharedBase(model, config))
        policy, name = Policy(model, AdapterCritic(model, 32)), "critic"
        for path, weight in model.named_parameters():  # away from the base, and the two adapters from each other
            weight += 0.05 * torch.randn_like(weight) if "lora_B" in path else 0.0
    else:
        critic = SharedCritic(32) if kind == "shared" else SeparateCritic(load_causal_lm(config), 32)
        policy, name = Policy(load_causal_lm(config), critic), ""
    head: nn.Linear = policy.critic.head  # type: ignore[union-attr, assignment]
    head.weight.copy_(torch.linspace(-1, 1, 32)[None])
    index = torch.tensor([0, 1, 0, 1, 0])
    given = replace(rows.rows(index), truncated=torch.tensor([True, True, False, False, True]))
    given.mask[4] = False
    found = policy.final_values(given)
    assert found.dtype == torch.float32
    assert found[2:].tolist() == [0.0, 0.0, 0.0]
    backbone = policy.critic.backbone if kind == "separate" else backbone_of(policy.model)  # type: ignore[union-attr]
    with adapter_view(policy.model, [name]) if name else nullcontext():
        for row in range(2):
            prompt, length = rows.tokens[row, :4][rows.prompt_mask[row]], int(rows.reach[row])
            ids = torch.cat([prompt, rows.tokens[row, 4 : 4 + length]])[None]
            expected = head(backbone(ids).last_hidden_state[0, -1])
            torch.testing.assert_close(found[row], expected[0], atol=1e-4, rtol=1e-4)
    nothing = replace(given, truncated=torch.zeros(5, dtype=torch.bool))
    assert policy.final_values(nothing).tolist() == [0.0] * 5


def test_a_separate_critic_moves_no_weight_of_the_policy(tiny_model_folder: Folder, rows: Rows) -> None:
    policy = policy_with(SeparateCritic, tiny_model_folder("llama"))
    nn.init.ones_(policy.critic.head.weight)  # type: ignore[union-attr, arg-type]
    policy(rows).values.sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())
    assert any(p.grad is not None for p in policy.critic.backbone.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_critic_is_as_wide_as_what_the_head_reads(kind: str, tokenizer_folder: str, rows: Rows) -> None:
    sizes = {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = ModelConfig(config={"model_type": "opt", **sizes}, tokenizer=tokenizer_folder)  # as OPT 350m
    stage = PolicyStage(config, PPO(), RandomReward(), critic=kind)  # type: ignore[arg-type]
    model = load_causal_lm(config)
    values = Policy(model, stage.roles.build_critic(model))(rows).values
    assert values is not None
    assert values.shape == rows.mask.shape
