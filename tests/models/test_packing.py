"""Packed rows have the values and gradients of single rows, with fewer tokens; unsupported architectures are padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from completions import completions
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import rlhf_lightning.models.logprobs as logprobs_module
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import backbone as backbone_module
from rlhf_lightning.models.backbone import supports_packing
from rlhf_lightning.models.critics import SeparateCritic, SharedCritic
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_reward_model
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.packing import PrefixGroup, cheapest_layout, row_sizes, sequence_length
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reward_model import score_rows
from rlhf_lightning.rewards import ModelReward
from rlhf_lightning.types import PolicyOutput, Rows
from tests.conftest import ARCHITECTURES
from tests.holes import with_holes

Folder = Callable[[str], str]
PAD = 2
"""The stop token is the pad token too, and stands at the end of responses."""
SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 290, "pad_token_id": 0}
SIZES |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2, "initializer_range": 0.1}
INEXACT: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "takes no block mask"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "counts positions from the start of a packed sequence"),
    "falcon_h1": ({"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}, "has layers of hybrid"),
    "rwkv": ({"attention_hidden_size": 32}, "packing would change its hidden states"),  # recurrent, without layer_types
}
"""Architectures whose rows cannot be packed, and the reason in the printed line."""


def rows_of(prompts: list[list[int]], lengths: list[int], padding: int = 1) -> Rows:
    """One row a response, left and right padded by at least `padding` columns; a response ends with the pad token."""
    width, longest = max(map(len, prompts)) + padding, max(lengths) + padding
    tokens, generator = torch.full((len(prompts), width + longest), PAD), torch.Generator().manual_seed(0)
    prompt_mask = torch.arange(width)[None] >= width - torch.tensor([len(prompt) for prompt in prompts])[:, None]
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        tokens[row, width - len(prompt) : width] = torch.tensor(prompt)
        tokens[row, width : width + length - 1] = torch.randint(3, 290, (max(0, length - 1),), generator=generator)
    return Rows(tokens, prompt_mask, mask, torch.arange(len(prompts)), mask[:, -1])


@pytest.fixture(params=["whole", "holes"])
def rows(request: pytest.FixtureRequest) -> Rows:
    """Responses of a group that are not side by side, one without a token; a group of one; a prompt that ends another."""
    a, b, c = [5, 6, 7, 8, 9], [11, 12, 13], [8, 9]
    rows = rows_of([a, b, a, c, a, a, c], [4, 6, 1, 3, 0, 7, 2])
    return with_holes(rows) if request.param == "holes" else rows


@pytest.fixture
def groups() -> Rows:
    """Four prompts of ten tokens with four responses of five each."""
    return rows_of([list(range(10 * i + 3, 10 * i + 13)) for i in range(4) for _ in range(4)], [5] * 16)


def loaded(folder: str, **options: Any) -> Any:
    return load_causal_lm(ModelConfig(folder, **options))


@contextmanager
def fed(backbone: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """The shapes [sequences, tokens] of every call of the backbone."""
    seen: list[tuple[int, int]] = []

    def note(_: nn.Module, __: Any, given: dict[str, Tensor]) -> None:
        seen.append(tuple(given["input_ids"].shape))

    handle = backbone.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def learned(policy: Policy, rows: Rows) -> tuple[PolicyOutput, Tensor]:
    """A policy's output for rows, and the gradient of a sum in which every number has another weight."""
    policy.zero_grad()
    output = policy(rows, entropy=True)
    measured = torch.stack([output.logprobs, output.entropy, output.values])  # type: ignore[list-item]
    (measured * torch.linspace(1, 2, measured.numel()).view(measured.shape)).sum().backward()
    return output, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]).double()


def critic_of(kind: str, folder: str, **options: Any) -> SharedCritic:
    critic = SharedCritic(32) if kind == "shared" else SeparateCritic(loaded(folder, **options), 32)
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    return critic


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_packed_rows_have_the_values_and_gradients_of_padded_ones(
    tiny_model_folder: Folder, rows: Rows, arch: str, attention: str, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = tiny_model_folder(arch), []
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", 9 * 290)  # a head in chunks
    for options in ({"pack": True}, {"pack": False}):
        policy = Policy(loaded(folder, attention=attention, **options), critic_of(critic, folder, **options), 0.7)
        supports_packing(policy.backbones()[-1])
        with fed(policy.backbones()[-1]) as seen:
            output, gradient = learned(policy, rows)
        found.append((output, gradient, seen[0][0] * seen[0][1]))
    (packed, gradient, few), (padded, expected, many) = found
    for name in ("logprobs", "entropy", "values"):
        assert float(getattr(padded, name).detach().abs().max()) > 0.1
        torch.testing.assert_close(getattr(packed, name), getattr(padded, name), atol=1e-5, rtol=0)
    assert float((gradient - expected).norm() / expected.norm()) < 2e-6
    assert few < many


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("critic", ["shared", "separate"])
@torch.no_grad()
def test_logprobs_entropy_and_values_are_those_of_plain_transformers(
    tiny_model_folder: Folder, rows: Rows, arch: str, pack: bool, critic: str
) -> None:
    folder = tiny_model_folder(arch)
    policy = Policy(loaded(folder, pack=pack), critic_of(critic, folder, pack=pack), 0.7)
    assert supports_packing(policy.backbones()[-1]) == pack
    output, width = policy(rows, entropy=True), rows.prompt_mask.shape[1]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    for row in range(len(rows)):  # each row alone, with the tokens that were read
        chosen = rows.mask[row].nonzero().flatten()
        ids = rows.tokens[row][torch.cat([rows.prompt_mask[row], torch.ones_like(rows.mask[row])])][None]
        found = model(ids, output_hidden_states=True)
        before = int(rows.prompt_mask[row].sum()) - 1 + chosen
        distribution = torch.distributions.Categorical(logits=found.logits[0, before] / 0.7, validate_args=False)
        expected = {
            "logprobs": distribution.log_prob(rows.tokens[row, width + chosen]),
            "entropy": distribution.entropy(),
            "values": policy.critic.head(found.hidden_states[-1][0, before]).squeeze(-1),  # type: ignore[union-attr, operator]
        }
        for name, numbers in expected.items():
            torch.testing.assert_close(getattr(output, name)[row, chosen], numbers, atol=2e-5, rtol=0)
            assert not getattr(output, name)[row][~rows.mask[row]].any()


def test_the_states_before_chosen_tokens_alone_have_a_gradient(tiny_model_folder: Folder, rows: Rows) -> None:
    folder, states = tiny_model_folder("llama"), []
    policy = Policy(loaded(folder, pack=False), critic_of("shared", folder), 0.7)
    supports_packing(policy.backbones()[0])

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    policy.backbones()[0].register_forward_hook(keep)
    learned(policy, rows)
    kept = rows.mask.any(-1)  # an empty row is not fed
    expected = torch.zeros(states[0].shape[:2], dtype=torch.bool)
    for row, prompt, mask in zip(expected, rows.prompt_mask[kept].sum(-1), rows.mask[kept], strict=True):
        row[prompt - 1 + mask.nonzero().flatten()] = True
    assert torch.equal(states[0].grad.ne(0).any(-1), expected)


def test_a_shared_prompt_reaches_the_backbone_once(tiny_model_folder: Folder, groups: Rows) -> None:
    model = loaded(tiny_model_folder("llama"))
    supports_packing(model.base_model)
    with fed(model.base_model) as seen:
        Policy(model)(groups)
    # four prompts of 10 tokens and sixteen responses of 5, whose last token is followed by nothing
    assert [a * b for a, b in seen] == [4 * 10 + 16 * 4]
    padded = loaded(tiny_model_folder("llama"), pack=False)
    with fed(padded.base_model) as seen:
        Policy(padded)(groups)
    assert seen == [(16, 14)]


def test_uneven_rows_leave_little_padding(tiny_model_folder: Folder) -> None:
    lengths = torch.randint(1, 60, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    uneven = rows_of([[3 + i] * (1 + i % 7) for i in range(40)], lengths)
    model = loaded(tiny_model_folder("qwen2"))
    supports_packing(model.base_model)
    with fed(model.base_model) as seen:
        Policy(model)(uneven)
    needed = int(uneven.prompt_mask.sum() + (uneven.mask.sum(-1) - 1).sum())
    assert len(seen) == 1
    assert needed <= seen[0][0] * seen[0][1] < 1.1 * needed


@pytest.mark.parametrize("pack", [True, False])
def test_the_score_of_a_response_is_that_of_its_row_alone(tiny_model_folder: Folder, rows: Rows, pack: bool) -> None:
    model: Any = load_reward_model(ModelConfig(tiny_model_folder("llama"), pack=pack))
    supports_packing(model.base_model)
    with fed(model.base_model) as seen:
        scores = score_rows(model, rows)
    assert seen[0][0] * seen[0][1] < (45 if pack else 100)  # 10 tokens of prompts and 23 of responses, in lines
    width = rows.prompt_mask.shape[1]
    for row in range(len(rows)):
        prompt, response = rows.tokens[row, :width][rows.prompt_mask[row]], rows.tokens[row, width:][: rows.reach[row]]
        state = model.base_model(torch.cat([prompt, response])[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(scores[row], model.score(state)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", INEXACT)
def test_an_unsupported_architecture_is_probed_once_and_padded(
    arch: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(backbone_module, "print_first_time", lines.append)
    torch.manual_seed(0)
    options, reason = INEXACT[arch]
    sizes = {**SIZES, **options, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **sizes)).eval()
    whole = Policy(model)(rows).logprobs
    Policy(model)(rows)
    assert len(lines) == 1  # the second policy does not probe the backbone again
    assert "rows are padded and prompts computed for each response, as" in lines[0]
    assert reason in lines[0]
    with fed(model.base_model) as seen:
        alone = torch.cat([Policy(model)(rows.rows(torch.tensor([row]))).logprobs for row in range(len(rows))])
    assert {lines for lines, _ in seen} == {1}
    torch.testing.assert_close(whole, alone, atol=2e-5, rtol=0)


def test_a_packed_sequence_is_no_longer_than_a_window(groups: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(**options: Any) -> list[tuple[int, int]]:
        config = AutoConfig.for_model("mistral", **SIZES, **options)
        model: Any = AutoModelForCausalLM.from_config(config).eval()
        supports_packing(model.base_model)
        with fed(model.base_model) as seen:
            Policy(model)(groups)
        return seen

    assert lines(sliding_window=None) == [(4, 26)]
    assert lines(sliding_window=26) == [(4, 26)]
    narrow = lines(sliding_window=20)
    assert narrow[0][1] <= 20
    assert lines(sliding_window=13) == [(16, 14)]
    assert lines(sliding_window=None, max_position_embeddings=20) == narrow


def test_other_attention_than_sdpa_and_eager_is_not_packed(
    tiny_model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(backbone_module, "print_first_time", lines.append)
    assert supports_packing(loaded(tiny_model_folder("llama")).base_model)
    assert not lines
    backbone = loaded(tiny_model_folder("llama")).base_model
    backbone.config._attn_implementation = "flash_attention_2"
    assert not supports_packing(backbone)
    assert lines[0].endswith("as attention flash_attention_2 takes no block mask")


def test_nothing_is_set_on_the_modules_of_transformers(tiny_model_folder: Folder, rows: Rows) -> None:
    model = loaded(tiny_model_folder("llama"), pack=False, max_tokens_per_batch=20)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama"))
    policy = Policy(model)
    policy.probe_capabilities()
    policy(rows)
    assert vars(model.base_model).keys() == vars(plain.base_model).keys()
    assert vars(model).keys() == vars(plain).keys()


def test_probing_changes_nothing(tiny_model_folder: Folder) -> None:
    backbone = loaded(tiny_model_folder("gpt2"), gradient_checkpointing=True).base_model
    backbone.h[1].eval()
    modes, state = [module.training for module in backbone.modules()], torch.get_rng_state()
    assert supports_packing(backbone)
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in backbone.parameters())
    with fed(backbone) as seen:
        assert supports_packing(backbone)
    assert not seen


def test_the_option_reaches_policy_and_critic(tiny_model_folder: Folder, groups: Rows) -> None:
    folder = tiny_model_folder("llama")
    for pack, shape in ((True, (4, 26)), (False, (16, 14))):
        policy = Policy(loaded(folder, pack=pack), critic_of("separate", folder, pack=pack))
        for backbone in policy.backbones():
            supports_packing(backbone)
            with fed(backbone) as seen:
                policy(groups)
            assert seen == [shape]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("limit", [1, 30, 60, 10_000])
def test_passes_without_gradient_are_split_into_micro_batches(
    tiny_model_folder: Folder, rows: Rows, pack: bool, limit: int
) -> None:
    folder = tiny_model_folder("llama")
    policy = Policy(loaded(folder, pack=pack, max_tokens_per_batch=limit), critic_of("shared", folder), 0.7)
    whole, _ = learned(policy, rows)
    with fed(policy.backbones()[0]) as seen, torch.no_grad():
        output = policy(rows, entropy=True)
        logprobs = response_logprobs(policy.model, rows.tokens, rows.prompt_mask, rows.mask, 0.7)
    for name in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(getattr(output, name), getattr(whole, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(logprobs, whole.logprobs, atol=1e-5, rtol=0)
    assert all(lines * length <= limit or lines == 1 for lines, length in seen)
    assert (len(seen) > 2) == (limit < (50 if pack else 80))
    with fed(policy.backbones()[0]) as seen:
        policy(rows)  # with gradients it is one call, or ranks that share weights would wait for each other
    assert len(seen) == 1


def test_rows_without_responses_still_call_the_backbone_once(tiny_model_folder: Folder, rows: Rows) -> None:
    policy = Policy(loaded(tiny_model_folder("llama")), SharedCritic(32))
    supports_packing(policy.backbones()[0])
    nothing = replace(rows, mask=torch.zeros_like(rows.mask))
    with fed(policy.backbones()[0]) as seen:
        output, gradient = learned(policy, nothing)
    assert seen == [(1, 5)]
    assert not output.logprobs.any()
    assert not output.values.any()  # type: ignore[union-attr]
    assert len(gradient)
    assert not gradient.any()


def test_the_cheapest_sequences_are_short_for_narrow_models_and_long_for_wide_ones() -> None:
    one = rows_of([list(range(3, 103))] * 16, [50] * 16, padding=0)
    sizes = row_sizes(one, one.mask.sum(-1), one.mask.any(-1))
    lengths = [sequence_length(cheapest_layout(sizes, width, 2**62)) for width in (1, 64, 1024, 10**6)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 150  # a line each
    assert lengths[-1] == 100 + 16 * 50  # all responses behind one prompt
    assert sequence_length(cheapest_layout(sizes, 10**6, 400)) <= 400


def test_a_pass_of_no_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_tokens_per_batch is 0; .* set it to at least 1"):
        ModelConfig("somewhere", max_tokens_per_batch=0)


def test_a_reward_model_has_the_option_and_shares_prompts(
    tiny_model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model_folder("llama")
    load_reward_model(ModelConfig(folder)).save_pretrained(tmp_path)
    prompts = ["say hello to the little dog"] * 3 + ["thank you"]
    generated = completions(["hello dog", "no", "hello hello cat", "please"], prompts)
    fed_tokens, scores = [], []
    for options in ({}, {"pack": False}, {"max_tokens_per_batch": 20}):
        reward = ModelReward(str(tmp_path), tokenizer=folder, **options)  # type: ignore[arg-type]
        reward.load(torch.device("cpu"))
        supports_packing(reward.model.base_model)
        with fed(reward.model.base_model) as seen:
            scores.append(torch.tensor(reward(generated)))
        fed_tokens.append([lines * length for lines, length in seen])
    torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores[2], scores[0], atol=1e-5, rtol=0)
    assert sum(fed_tokens[0]) < sum(fed_tokens[1])
    assert len(fed_tokens[0]) == 1 < len(fed_tokens[2])


@pytest.mark.parametrize("count", [22, 26, 90])
def test_a_layout_has_the_least_documented_cost_of_all_candidates(count: int) -> None:
    one = rows_of([list(range(3, 103))] * count, [50] * count, padding=0)
    sizes = row_sizes(one, one.mask.sum(-1), one.mask.any(-1))
    # a row each, or as many responses behind a prompt as a sequence holds
    candidates = {(count, 150, True)}
    for quarter in range(13):
        held = min((int(2 ** (quarter / 4) * 150) - 100) // 50, count)
        candidates.add((-(-count // held), 100 + held * 50, held == 1))

    def cost(sequences: int, length: int, alone: bool, width: float) -> float:
        return sequences * length * (1 + length / (4 * width) / (2 if alone else 1))

    chosen = set()
    for width in [*range(1, 100), 10**6]:
        layout = cheapest_layout(sizes, width, 2**62)
        alone = all(len(sequence) == len(sequence[0].rows) == 1 for sequence in layout)
        found = (len(layout), sequence_length(layout), alone)
        assert cost(*found, width) == pytest.approx(min(cost(*each, width) for each in candidates))
        chosen.add(found)
    assert len(chosen) > 2


def test_groups_are_packed_by_best_fit_decreasing() -> None:
    uneven = rows_of([[3, 4], [5, 6], [7, 8], [9, 10]], [2, 3, 3, 4], padding=0)
    layout = cheapest_layout(row_sizes(uneven, uneven.mask.sum(-1), uneven.mask.any(-1)), 10**6, 10)
    assert sorted(sorted(group.length for group in sequence) for sequence in layout) == [[4, 6], [5, 5]]


def test_several_rows_are_in_a_sequence_where_the_longest_fits_into_the_window() -> None:
    uneven = rows_of([[3, 4], [5, 6], [7, 8]], [8, 3, 3], padding=0)
    sizes = row_sizes(uneven, uneven.mask.sum(-1), uneven.mask.any(-1))
    assert [len(cheapest_layout(sizes, 10**6, window)) for window in (10, 9)] == [2, 3]
    longer = rows_of([[3, 4], [5, 6], [7, 8]], [10, 3, 3], padding=0)
    alone = cheapest_layout(row_sizes(longer, longer.mask.sum(-1), longer.mask.any(-1)), 10**6, 10)
    assert len(alone) == 3
    twice = rows_of([[3, 4]] * 2, [3, 3], padding=0)
    two = row_sizes(twice, twice.mask.sum(-1), twice.mask.any(-1))
    assert cheapest_layout(two, 10**6, 2**62) == [[PrefixGroup([0, 1], 8)]]


def test_a_limit_is_kept_by_the_cheapest_layout_that_holds_it() -> None:
    one = rows_of([list(range(3, 103))] * 16, [50] * 16, padding=0)
    sizes = row_sizes(one, one.mask.sum(-1), one.mask.any(-1))
    assert sequence_length(cheapest_layout(sizes, 1, 2**62, 16 * 150)) == 150  # as many tokens as the limit are allowed
    narrow = cheapest_layout(sizes, 1, 2**62, 16 * 150 - 1)
    assert sequence_length(narrow) > 150
    assert len(narrow) * sequence_length(narrow) < 16 * 150
    assert sequence_length(cheapest_layout(sizes, 1, 2**62, 10)) == 150  # none holds it
    assert sequence_length(cheapest_layout(sizes, 10**6, 149)) == 150  # no sequence of several rows is that short
    single = row_sizes(one.rows(torch.tensor([0])), torch.tensor([50]), torch.tensor([True]))
    assert cheapest_layout(single, 10**6, 2**62) == [[PrefixGroup([0], 150)]]
