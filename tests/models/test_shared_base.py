"""Critic and reward model as adapters on the policy's base: the numbers of models of their own, the memory of an adapter."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from completions import completions
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf_lightning.models.backbone import capabilities_of
from rlhf_lightning.models.critics import AdapterCritic, SeparateCritic, SharedCritic, save_critic
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_reward_model, load_tokenizer
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import build_reference
from rlhf_lightning.models.reward_model import normalize_scores, score_sequences, set_normalization
from rlhf_lightning.models.shared_base import SharedBase, add_critic_adapter
from rlhf_lightning.rewards import ModelReward, WeightedSum
from rlhf_lightning.types import Rows

Folder = Callable[[str], str]
LORA = LoraOptions(r=4)


@pytest.fixture
def rows() -> Rows:
    """Two rows, one prompt left padded, one response shorter."""
    tokens = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    prompt_mask, mask = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    prompt_mask[0, :2], mask[1, 3:] = False, False
    return Rows(tokens, prompt_mask, mask, torch.arange(2), mask[:, -1])


def on_one_base(config: ModelConfig) -> Policy:
    model = load_causal_lm(config)
    add_critic_adapter(SharedBase(model, config))
    return Policy(model, AdapterCritic(model, 32))


def on_two_bases(config: ModelConfig) -> Policy:
    return Policy(load_causal_lm(config), SeparateCritic(load_causal_lm(config), 32))


def moved(weights: nn.Module) -> None:
    """Away from where they began, the same way for all that trains, in the order in which it stands."""
    with torch.no_grad():
        for parameter in weights.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def adapter_of(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    found = {path.replace(f".{name}.", "."): p for path, p in model.named_parameters() if f".{name}." in path}
    return {path.removeprefix("base_model.model."): p for path, p in found.items()}


def trained_adapter(config: ModelConfig, folder: Path) -> str:
    model = load_causal_lm(config)
    moved(model)
    export_model(model, load_tokenizer(config), folder, [2])
    return str(folder)


@pytest.fixture(params=["new", "checkpointed", "quantised", "continued"])
def config(request: pytest.FixtureRequest, tiny_model_folder: Folder, tmp_path: Path) -> ModelConfig:
    """Of a policy with an adapter: on plain weights, recomputing activations, on 4 bits, trained before."""
    new = ModelConfig(tiny_model_folder("llama"), lora=LORA, seed=3)
    if request.param == "continued":
        return ModelConfig(trained_adapter(new, tmp_path / "adapter"))
    changes: dict[str, Any] = {"checkpointed": {"gradient_checkpointing": True}, "quantised": {"quantization": "nf4"}}
    return dataclasses.replace(new, **changes.get(request.param, {}))


def test_a_critic_on_the_policys_base_learns_what_one_on_a_base_of_its_own_learns(
    config: ModelConfig, rows: Rows
) -> None:
    shared, separate = on_one_base(config), on_two_bases(config)
    for policy in (shared, separate):
        nn.init.constant_(policy.critic.head.weight, 0.1)  # type: ignore[union-attr, arg-type]
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.05)
        for _ in range(2):  # after the first step the two adapters differ, and both are away from the base
            output = policy(rows)
            ((output.values - 1).square() * rows.mask).sum().sub(output.logprobs.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    first, second = shared(rows), separate(rows)
    assert (first.values - on_one_base(config)(rows).values).abs().max() > 0.1
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(first.logprobs, second.logprobs, rtol=0, atol=1e-5)
    critic = adapter_of(shared.model, "critic")
    policy_adapter, other = adapter_of(shared.model, "default"), adapter_of(separate.model, "default")
    backbone = {path: p for path, p in separate.critic.backbone.named_parameters() if p.requires_grad}  # type: ignore[union-attr]
    assert len(critic) == len(policy_adapter) == len(other) == len(backbone) == 28
    for path, own in backbone.items():
        torch.testing.assert_close(critic[f"model.{path.replace('.default.', '.')}"], own, rtol=0, atol=1e-6)
    for path, own in other.items():
        torch.testing.assert_close(policy_adapter[path], own, rtol=0, atol=1e-6)
    assert any(not torch.equal(critic[path], policy_adapter[path]) for path in critic)


def test_both_adapters_and_the_head_train_and_nothing_else(config: ModelConfig, rows: Rows) -> None:
    policy = on_one_base(config)
    before = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] if "lora" in name else name for name in before} == {
        *("default", "critic", "critic.head.weight", "critic.head.bias")
    }
    policy(rows)
    build_reference("adapter", config, policy.model, "cpu").logprobs(rows.tokens, rows.prompt_mask, rows.mask, 1.0)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == before


def test_a_view_of_a_backbone_has_the_capabilities_of_the_module(tiny_model_folder: Folder) -> None:
    config = ModelConfig(tiny_model_folder("llama"), lora=LORA, max_tokens_per_batch=77, pack=False)
    policy = on_one_base(config)
    for backbone in policy.backbones():
        assert capabilities_of(backbone).max_tokens_per_batch == 77
        assert capabilities_of(backbone).packing is False


def test_the_critics_adapter_costs_an_adapter(tiny_model_folder: Folder) -> None:
    config = ModelConfig(tiny_model_folder("llama"), lora=LORA)

    def size(policy: Policy) -> int:
        return sum(p.numel() for p in policy.parameters())

    alone = size(Policy(load_causal_lm(config)))
    adapter = sum(p.numel() for p in load_causal_lm(config).parameters() if p.requires_grad)
    assert size(on_one_base(config)) == alone + adapter + 33
    names = set(Policy(load_causal_lm(config)).state_dict())
    assert len(names) + 28 + 2 == len(on_one_base(config).state_dict())  # its adapter once, and its head


def test_the_policys_export_lacks_the_critic_whose_own_file_holds_adapter_and_head(
    config: ModelConfig, rows: Rows, tmp_path: Path
) -> None:
    policy = on_one_base(config)
    moved(policy)
    alone = Policy(load_causal_lm(config))
    for state, name in ((None, "whole"), (policy.state_dict(), "gathered")):
        folder = tmp_path / name
        within = None if state is None else {k.removeprefix("model."): x for k, x in state.items()}
        export_model(policy.model, load_tokenizer(config), folder, [2], within)
        save_critic(policy, state, folder / "critic.safetensors")
        assert not any("critic" in key for key in load_file(folder / "adapter_model.safetensors"))
        assert not (folder / "critic").exists()
        alone = Policy(load_causal_lm(dataclasses.replace(config, name_or_path=str(folder), lora=None)))
        torch.testing.assert_close(alone(rows).logprobs, policy(rows).logprobs, rtol=0, atol=1e-5)
        saved = load_file(folder / "critic.safetensors")
        assert torch.equal(saved["head.weight"], policy.critic.head.weight)  # type: ignore[union-attr, arg-type]
        adapter = adapter_of(policy.model, "critic")
        assert {key.removeprefix("base_model.model.") for key in saved if "lora" in key} == set(adapter)
        assert all(torch.equal(saved[f"base_model.model.{path}"], value) for path, value in adapter.items())


# -- reward models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reward_folder(tmp_path: Path) -> Callable[..., str]:
    """The export of a reward model that was trained as an adapter of a base."""

    def make(base: str, name: str = "reward", **options: Any) -> str:
        config = ModelConfig(base, lora=LoraOptions(r=3, alpha=6, dropout=0.5, **options), seed=7)
        model = load_reward_model(config)
        moved(model)
        set_normalization(model, 0.3, 2.0)
        export_model(model, load_tokenizer(config), tmp_path / name, [2])
        return str(tmp_path / name)

    return make


TEXTS = completions(["hello dog", "thank you and the cat", "no"], ["say ", "please ", "say hello to "])


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_reward_model_on_the_policys_base_scores_as_on_its_own(
    tiny_model_folder: Folder,
    reward_folder: Callable[..., str],
    rows: Rows,
    capsys: pytest.CaptureFixture[str],
    arch: str,
    quantization: Any,
) -> None:
    folder = reward_folder(tiny_model_folder(arch))
    separate = load_reward_model(ModelConfig(folder, quantization=quantization))
    config = ModelConfig(tiny_model_folder(arch), lora=LORA, quantization=quantization)
    policy = on_one_base(config)
    moved(policy)
    before = policy(rows)
    trains = [name for name, p in policy.named_parameters() if p.requires_grad]
    reward = ModelReward(folder)
    WeightedSum({"learned": reward}).share(SharedBase(policy.model, config))
    said = capsys.readouterr().out.splitlines()
    kind = ", quantised to nf4" if quantization else ""
    assert said == [
        f"the reward model {folder} shares the policy's base{kind} (set model.share_base to false to load another)"
    ]
    reward.load(torch.device("cpu"))
    mask = torch.cat([rows.prompt_mask, rows.mask], 1)
    policy.train()  # as while it learns
    with torch.no_grad():
        expected = normalize_scores(separate, score_sequences(separate, rows.tokens, mask))
        found = normalize_scores(reward.model, score_sequences(reward.model, rows.tokens, mask))
    assert (expected[0] - expected[1]).abs() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if quantization is None:
        alone = ModelReward(folder)
        alone.load(torch.device("cpu"))
        assert reward(TEXTS) == pytest.approx(alone(TEXTS), abs=1e-5)
    assert torch.equal(policy(rows).logprobs, before.logprobs)
    assert torch.equal(policy(rows).values, before.values)
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trains
    own = sum(p.numel() for p in reward.model.parameters())
    assert own == 32  # the head; the rest is the policy's to move and to cut


def test_two_reward_models_share_one_base(tiny_model_folder: Folder, reward_folder: Callable[..., str]) -> None:
    base = tiny_model_folder("llama")
    config = ModelConfig(base, lora=LORA)
    shared = SharedBase(load_causal_lm(config), config)
    folders = [reward_folder(base, "one"), reward_folder(base, "two", target_modules=["q_proj"])]
    rewards, alone = [ModelReward(folder) for folder in folders], [ModelReward(folder) for folder in folders]
    for reward in rewards:
        reward.share(shared)
    for reward in (*rewards, *alone):
        reward.load(torch.device("cpu"))
    assert [r(TEXTS) for r in rewards] == [pytest.approx(r(TEXTS), abs=1e-5) for r in alone]
    assert rewards[0](TEXTS) != rewards[1](TEXTS)


def test_what_is_no_adapter_of_the_policys_base_is_loaded_by_itself(
    tiny_model_folder: Folder, reward_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    load_causal_lm(ModelConfig(tiny_model_folder("llama"))).save_pretrained(other)
    load_tokenizer(ModelConfig(tiny_model_folder("llama"))).save_pretrained(other)
    config = ModelConfig(tiny_model_folder("llama"), lora=LORA)
    base = SharedBase(load_causal_lm(config), config)
    names = set(dict(base.model.named_parameters()))
    for reward in (ModelReward(reward_folder(str(other))), ModelReward("playground/reward")):
        reward.share(base)
        assert capsys.readouterr().out == ""
        assert reward.model is None
    halves = ModelReward(reward_folder(tiny_model_folder("llama"), "halves"), dtype="bfloat16")
    halves.share(base)
    assert "is loaded with its own base: its dtype is bfloat16, and the base's is float32" in capsys.readouterr().out
    assert halves.model is None
    assert set(dict(base.model.named_parameters())) == names
    halves.load(torch.device("cpu"))
    assert len(halves(TEXTS)) == 3


def test_a_copy_of_the_policy_has_a_critic_of_its_own(tiny_model_folder: Folder, rows: Rows) -> None:
    policy = on_one_base(ModelConfig(tiny_model_folder("llama"), lora=LORA))
    nn.init.ones_(policy.critic.head.weight)  # type: ignore[union-attr, arg-type]
    twin = copy.deepcopy(policy)
    values: Tensor = policy(rows).values
    moved(policy)
    assert torch.equal(twin(rows).values, values)
    assert isinstance(twin.critic, SharedCritic)
