"""Every number of a rollout against a direct call of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.critics import SeparateCritic, SharedCritic
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.micro_batches import trim
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import CopiedReference
from rlhf_lightning.rewards import Reward, RewardOutput, WeightedSum
from rlhf_lightning.rollouts.recorded import PolicyCollector
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Completions, Rollout
from tests.holes import ReadingSampler

STOPS = list(range(2, 60))
PROMPTS: list[dict[str, Any]] = [{"prompt": "please say hello", "worth": 3.0}, {"prompt": "cat", "worth": None}]
PAIRS = [
    {"prompt": "say", "chosen": "hello dog", "rejected": "no"},
    {"prompt": "please say hello to", "chosen": "the cat", "rejected": "the little dog"},
    {"prompt": "say", "chosen": "no", "rejected": "thank you"},
]


class Worth(Reward):
    """The number in the column `worth`, minus the index of the row."""

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        worth = completions.columns["worth"]
        return [None if value is None else value - row for row, value in enumerate(worth)]


@pytest.fixture(params=[Sampler, ReadingSampler])
def collector(request: Any, tiny_model_folder: Callable[[str], str], tokenizer: Any) -> PolicyCollector:
    """A policy that differs from its reference, at temperature 0.7."""
    config = ModelConfig(tiny_model_folder("gpt2"))
    policy = Policy(load_causal_lm(config), SharedCritic(32), temperature=0.7)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.1)  # type: ignore[operator]
    policy.critic.head.bias.data.fill_(0.5)  # type: ignore[union-attr]
    reference = CopiedReference(load_causal_lm(config), "full")
    return PolicyCollector(
        ResponseGenerator(policy, request.param(6, 0.7), Encoder(tokenizer, STOPS)), Worth(), reference, 0.7
    )


def collected(collector: PolicyCollector, values: bool = False, count: bool = True) -> Rollout:
    return collector.online(PROMPTS, 4, values, Randomness(0, 0, tuple(range(len(PROMPTS)))), count)


def direct_logprobs(model: Any, rollout: Rollout, temperature: float = 0.7) -> Tensor:
    with torch.no_grad():
        return response_logprobs(model, rollout.tokens, rollout.prompt_mask, rollout.mask, temperature)


def test_a_response_to_an_empty_prompt_has_the_log_probabilities_of_generation(collector: PolicyCollector) -> None:
    rows = [{"prompt": "", "worth": 1.0}, PROMPTS[0]]
    rollout = collector.online(rows, 4, False, Randomness(0, 0, tuple(range(len(rows)))))
    torch.testing.assert_close(
        rollout.logprobs,
        direct_logprobs(collector.response_generator.policy.model, rollout) * rollout.mask,
        rtol=0,
        atol=1e-5,
    )


def test_the_responses_of_a_prompt_are_adjacent(collector: PolicyCollector) -> None:
    generated = collector.response_generator.generate(PROMPTS, 4, Randomness(0, 0, tuple(range(len(PROMPTS)))))
    assert generated.groups.tolist() == [0] * 4 + [1] * 4
    assert generated.prompts == ["please say hello"] * 4 + ["cat"] * 4
    assert generated.columns["worth"] == [3.0] * 4 + [None] * 4
    width = generated.prompt_mask.shape[1]
    stopped = []
    for row in range(8):
        prompt = generated.tokens[row, :width][generated.prompt_mask[row]].tolist()
        response = generated.tokens[row, width:][generated.mask[row]].tolist()
        assert prompt == collector.response_generator.encoder.tokenizer(generated.prompts[row])["input_ids"]
        stopped.append(response[-1] in STOPS)
    assert generated.truncated.tolist() == [not x for x in stopped]
    assert 0 < sum(stopped) < 8


@pytest.mark.parametrize("values", [False, True])
def test_log_probabilities_are_the_policys_and_the_references_at_the_sampling_temperature(
    collector: PolicyCollector, values: bool
) -> None:
    rollout = collected(collector, values)
    torch.testing.assert_close(
        rollout.logprobs, direct_logprobs(collector.response_generator.policy.model, rollout), atol=1e-5, rtol=0
    )
    reference = direct_logprobs(collector.reference._model, rollout)  # type: ignore[attr-defined]
    torch.testing.assert_close(rollout.reference_logprobs, reference, atol=1e-5, rtol=0)
    assert not torch.allclose(rollout.logprobs, reference, atol=1e-3)
    if values:
        assert torch.equal(rollout.values, 0.5 * rollout.mask)
    else:
        assert rollout.values is None


@pytest.mark.parametrize("sampler", [Sampler(6, 0.7), Sampler(6, 0.7, 3), Sampler(6, 0.7, continuous_batching=False)])
def test_a_shared_critic_needs_no_forward_pass(collector: PolicyCollector, sampler: Sampler) -> None:
    policy = collector.response_generator.policy
    torch.nn.init.normal_(policy.critic.head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    collector.response_generator.generation = sampler
    with patch.object(policy, "forward", side_effect=AssertionError("a pass")):
        rollout = collected(collector, values=True)
    with torch.no_grad():
        expected = policy(rollout).values
    assert expected.std() > 0.1
    torch.testing.assert_close(rollout.values, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("generation", [Sampler(6, 0.7), TransformersGenerate(6, 0.7)])
def test_other_critics_and_samplers_take_a_forward_pass(
    collector: PolicyCollector, generation: Generator, tiny_model_folder: Callable[[str], str]
) -> None:
    policy = collector.response_generator.policy
    if isinstance(generation, Sampler):
        policy.critic = SeparateCritic(load_causal_lm(ModelConfig(tiny_model_folder("gpt2"))), 32)
    torch.nn.init.normal_(policy.critic.head.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    collector.response_generator.generation = generation
    with patch.object(policy, "_measure", wraps=policy._measure) as measured:
        rollout = collected(collector, values=True)
    assert measured.called != isinstance(generation, Sampler)  # it recorded its log-probabilities
    with torch.no_grad():
        torch.testing.assert_close(rollout.values, policy(rollout).values, atol=1e-5, rtol=0)
    assert rollout.values is not None
    assert rollout.values[rollout.mask].std() > 0.1


def test_an_unscored_response_has_an_empty_mask_and_is_in_no_metric(collector: PolicyCollector) -> None:
    rollout = collected(collector)
    assert rollout.rewards.tolist() == [3.0, 2.0, 1.0, 0.0] + [0.0] * 4
    assert rollout.mask[:4].any(-1).all()
    assert not rollout.mask[4:].any()
    found, kept = collector.metrics, rollout.mask
    assert found["reward/mean"] == 1.5
    assert found["reward/std"] == pytest.approx((5 / 3) ** 0.5)
    assert found["reward/unscored"] == 4
    kl = (rollout.logprobs - rollout.reference_logprobs)[kept].mean()
    assert found["kl/reference"] == pytest.approx(float(kl), abs=1e-6)
    assert found["policy/entropy"] == pytest.approx(-float(rollout.logprobs[kept].mean()))
    assert found["response/length"] == float(kept[:4].sum()) / 4
    assert found["response/truncated"] == float(rollout.truncated[:4].sum()) / 4


def test_a_rollout_without_a_score_has_no_mean(collector: PolicyCollector) -> None:
    rows = [{**row, "worth": None} for row in PROMPTS]
    rollout = collector.online(rows, 4, False, Randomness(0, 0, tuple(range(len(rows)))))
    assert collector.nothing_scored
    assert not rollout.mask.any()
    metrics = dict(collector.metrics)
    assert metrics.pop("reward/unscored") == 8
    known = {name for name, value in metrics.items() if not math.isnan(value)}
    assert {name.split("/")[0] for name in known} == {"time", "throughput"}
    assert {"reward/mean", "reward/std", "reward/tied", "kl/reference", "response/length"} <= set(metrics) - known
    collected(collector)
    assert not collector.nothing_scored


def test_the_fraction_of_tied_responses_is_a_metric(collector: PolicyCollector) -> None:
    class Rated(Reward):
        def __call__(self, completions: Completions) -> Sequence[float | None]:
            return [1e6 / 3 if row < 4 else None if row == 4 else row for row in range(len(completions))]

    collector.reward = Rated()
    collected(collector)
    assert collector.metrics["reward/tied"] == pytest.approx(4 / 7)  # the one prompt
    collector.online(PROMPTS, 1, False, Randomness(0, 0, tuple(range(len(PROMPTS)))))
    assert "reward/tied" not in collector.metrics


def test_rows_that_do_not_count_have_empty_masks(collector: PolicyCollector) -> None:
    collector.reward = WeightedSum({"worth": Worth()})
    rollout = collected(collector, count=False)
    assert len(rollout) == 8
    assert not rollout.mask.any()
    assert collector.metrics["reward/unscored"] == 0
    assert not collector.nothing_scored  # there was nothing to score
    assert all(math.isnan(collector.metrics[f"reward/{name}"]) for name in ("worth", "mean", "std"))
    pairs = collector.recorded(PAIRS, None, torch.device("cpu"), count=False)
    assert len(pairs) == 6
    assert not pairs.mask.any()


def test_both_rows_of_a_recorded_pair_say_how_probably_they_are_the_better_one(collector: PolicyCollector) -> None:
    rows = [{**PAIRS[0], "probability": 0.75}, {**PAIRS[0], "probability": None}, PAIRS[0]]
    found = collector.recorded(rows, None, torch.device("cpu")).preferences
    assert found is not None
    assert found.tolist() == [0.75, 0.25, 1.0, 0.0, 1.0, 0.0]
    with pytest.raises(
        UserError, match=r"probability is 0\.3; chosen is the better response of a row: set probability"
    ):
        collector.recorded([{**PAIRS[0], "probability": 0.3}], None, torch.device("cpu"))


def test_recorded_pairs_are_two_rows_the_chosen_one_first(collector: PolicyCollector) -> None:
    rollout = collector.recorded(PAIRS, None, torch.device("cpu"))
    encoder = collector.response_generator.encoder
    texts = encoder.decode(rollout.tokens[:, rollout.prompt_mask.shape[1] :], rollout.mask)
    assert [text.split("<")[0] for text in texts] == ["hello dog", "no", "the cat", "the little dog", "no", "thank you"]
    assert rollout.rewards.tolist() == [1.0, 0.0] * 3
    assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(
        rollout.logprobs, direct_logprobs(collector.response_generator.policy.model, rollout), atol=1e-5, rtol=0
    )
    kl = (rollout.logprobs - rollout.reference_logprobs)[rollout.mask].mean()
    assert collector.metrics["kl/reference"] == pytest.approx(float(kl), abs=1e-6)


def test_without_a_reward_every_score_is_zero_and_nothing_is_scored(collector: PolicyCollector) -> None:
    unscored = replace(collector, reward=None)
    rollout, scored = collected(unscored), collected(collector)
    assert rollout.rewards.tolist() == [0.0] * 8
    assert torch.equal(rollout.tokens, scored.tokens)
    assert rollout.mask.any(-1).all()
    assert not {name for name in unscored.metrics if name.startswith("reward")}
    assert unscored.metrics["response/length"] > 0


def test_without_a_reference_a_rollout_has_no_log_probabilities_of_one(collector: PolicyCollector) -> None:
    alone = replace(collector, reference=None)
    rollout, compared = collected(alone), collected(collector)
    assert rollout.reference_logprobs is None
    assert torch.equal(rollout.logprobs, compared.logprobs)
    assert {name for name in collector.metrics if name not in alone.metrics} == {"kl/reference"}
    alone.recorded(PAIRS, None, torch.device("cpu"))
    assert "kl/reference" not in alone.metrics


class Tokens(Reward):
    """The number of tokens of a response, and its square: the sum of two components. Nothing for the prompt `cat`."""

    component_weights = {"squares": 3.0}  # noqa: RUF012

    def __call__(self, completions: Completions) -> RewardOutput:
        lengths = [float(n) for n in completions.mask.sum(-1)]
        known = [not prompt.startswith("cat") for prompt in completions.prompts]
        counts = [n if each else None for n, each in zip(lengths, known, strict=True)]
        squares = [None if n is None else n * n for n in counts]
        scores = [None if n is None else n + n * n for n in counts]
        return RewardOutput(scores, {"tokens": counts, "squares": squares})


def test_a_greedy_baseline_is_the_score_of_the_greedy_response(collector: PolicyCollector) -> None:
    collector = replace(collector, reward=Tokens())
    rows = [PROMPTS[0], {"prompt": "say hello"}, PROMPTS[1]]
    randomness = Randomness(0, 0, tuple(range(len(rows))))
    rollout = collector.online(rows, 4, False, randomness, greedy_baseline=True)
    greedy = (
        collector.response_generator.generate(rows, 1, Randomness(0, 0, tuple(range(len(rows)))), 0.0)
        .mask.sum(-1)
        .float()
    )
    expected = (greedy + greedy * greedy) * torch.tensor([1.0, 1.0, 0.0])  # the greedy response to `cat` has no score
    assert rollout.baselines is not None
    assert torch.equal(rollout.baselines, expected.repeat_interleave(4))
    assert torch.equal(rollout.mask.any(-1), torch.tensor([True, True, False]).repeat_interleave(4))
    assert len(rollout) == 12
    sampled = collector.online(rows, 4, False, Randomness(0, 0, tuple(range(len(rows)))))
    assert torch.equal(rollout.tokens, sampled.tokens)
    assert sampled.baselines is None


def test_a_prompt_whose_greedy_response_has_no_score_is_unscored(collector: PolicyCollector) -> None:
    class Sampled(Reward):
        """Score the first call, of sampled responses, and not the second, of greedy ones."""

        calls = 0

        def __call__(self, completions: Completions) -> Sequence[float | None]:
            self.calls += 1
            return [1.0 if self.calls == 1 else None] * len(completions)

    collector = replace(collector, reward=Sampled())
    scored = collector.request(PROMPTS, 4, Randomness(0, 0, tuple(range(len(PROMPTS)))), greedy_baseline=True)
    assert not scored.mask.any()
    assert scored.statistics.unscored == 8


def test_values_behind_truncated_responses_are_measured_where_an_algorithm_reads_them(
    collector: PolicyCollector,
) -> None:
    policy = collector.response_generator.policy
    assert policy.critic is not None
    nn.init.normal_(policy.critic.head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, arg-type]
    randomness = Randomness(0, 0, tuple(range(len(PROMPTS))))
    rollout = collector.online(PROMPTS, 4, True, randomness, bootstraps=True)
    counts = rollout.truncated & rollout.mask.any(-1)
    assert counts.any()
    assert not counts.all()  # some responses ended, and those to one prompt have no score
    assert torch.equal(rollout.final_values, policy.final_values(rollout))  # type: ignore[arg-type]
    assert rollout.final_values.ne(0).equal(counts)  # type: ignore[union-attr]
    assert collected(collector, values=True).final_values is None


def test_components_are_kept_by_row(collector: PolicyCollector) -> None:
    collector = replace(collector, reward=Tokens())
    rollout = collected(collector)
    assert rollout.components is not None
    lengths = rollout.mask.sum(-1).float()
    expected = torch.stack([lengths, lengths.square()], 1).masked_fill(lengths[:, None] == 0, math.nan)
    torch.testing.assert_close(rollout.components, expected, rtol=0, atol=0, equal_nan=True)
    assert rollout.component_weights is not None
    assert rollout.component_weights.tolist() == [[0.0, 3.0]] * 8  # the first is only logged
    assert collector.metrics["reward/squares"] == pytest.approx(float(lengths[:4].square().mean()))
    trimmed = trim(rollout)
    torch.testing.assert_close(trimmed.components, rollout.components, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(trimmed.component_weights, rollout.component_weights)  # type: ignore[arg-type]
    collected(collector, count=False)
    assert math.isnan(collector.metrics["reward/tokens"])


def test_every_rank_has_the_components_of_all_ranks(
    collector: PolicyCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint joins the rows of all ranks, so they have the same columns."""
    monkeypatch.setattr("rlhf_lightning.rollouts.collector.all_gather", lambda own: [("first",), own])
    collector = replace(collector, reward=Tokens())
    rollout = collected(collector)
    assert collector.component_names == ("first", "tokens", "squares")
    assert rollout.components is not None
    assert rollout.components[:, 0].isnan().all()
    assert torch.equal(rollout.components[:4, 1], rollout.mask[:4].sum(-1).float())
    assert rollout.component_weights is not None
    assert rollout.component_weights[0].tolist() == [0.0, 0.0, 3.0]


def test_a_request_asks_no_rank_and_measuring_no_generator(
    collector: PolicyCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halves of a rollout: the first may run beside training, the second reads the weights that train."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the other half")

    with monkeypatch.context() as patched:
        for name in ("all_sum", "shared_errors", "masked_mean", "masked_moments"):
            patched.setattr(f"rlhf_lightning.rollouts.collector.{name}", forbidden)
        patched.setattr(collector.response_generator.policy, "forward", forbidden)
        patched.setattr(collector.reference, "logprobs", forbidden)
        scored = collector.request(PROMPTS, 4, Randomness(0, 0, tuple(range(len(PROMPTS)))))
    with monkeypatch.context() as patched:
        patched.setattr(ResponseGenerator, "generate", forbidden)
        patched.setattr("rlhf_lightning.rollouts.pipeline.reward_scores", forbidden)
        halves = collector.measure(scored, values=True)
    whole = collected(collector, values=True)
    for name, value in whole.tensors().items():
        assert torch.equal(getattr(halves, name), value), name


def test_without_a_reward_the_scores_of_the_generator_count(collector: PolicyCollector) -> None:
    generate = ResponseGenerator.generate

    def rewarded(self: ResponseGenerator, *args: Any, **options: Any) -> Completions:
        return replace(generate(self, *args, **options), rewards=torch.arange(8.0))

    with patch.object(ResponseGenerator, "generate", rewarded):
        environment = replace(collector, reward=None)
        assert collected(environment).rewards.tolist() == list(range(8))
        assert environment.metrics["reward/mean"] == 3.5
        assert collected(collector).rewards.tolist() != list(range(8))
