"""Every algorithm against its definition: exact gradients by enumeration, credit by hand, every option felt."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from algorithm_kinds import KINDS, OF_PAIRS, OF_REWARDS
from torch import Tensor

import rlhf_lightning.algorithms
from rlhf_lightning.algorithms.base import Algorithm, PolicyGradient
from rlhf_lightning.algorithms.cispo import CISPO
from rlhf_lightning.algorithms.dapo import DAPO
from rlhf_lightning.algorithms.distillation import Distillation
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.gdpo import GDPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.gspo import GSPO
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.algorithms.kto import KTO
from rlhf_lightning.algorithms.orpo import ORPO
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.reinforce_plus_plus import REINFORCEPlusPlus, REINFORCEPlusPlusBaseline
from rlhf_lightning.algorithms.remax import ReMax
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.simpo import SimPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Batch, PolicyOutput, Rollout

ALGORITHMS: list[Any] = KINDS


def rollout(rows: int = 8, width: int = 5, group: int = 4, seed: int = 0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = torch.arange(width)[None] < lengths[:, None]
    logprobs = -torch.rand(rows, width, generator=generator) * mask
    return Rollout(
        tokens=torch.zeros(rows, 2 + width, dtype=torch.long),
        prompt_mask=torch.ones(rows, 2, dtype=torch.bool),
        mask=mask,
        groups=torch.arange(rows) // group,
        truncated=lengths == width,
        logprobs=logprobs,
        reference_logprobs=(logprobs + 0.3 * torch.randn(rows, width, generator=generator)) * mask,
        rewards=torch.randn(rows, generator=generator),
        values=torch.randn(rows, width, generator=generator) * mask,
        mismatched=torch.arange(rows) % 4 == 3,
        baselines=torch.randn(rows // group, generator=generator).repeat_interleave(group),
    )


def output_for(batch: Batch, seed: int = 1) -> PolicyOutput:
    generator = torch.Generator().manual_seed(seed)
    drift = 0.4 * torch.randn(batch.logprobs.shape, generator=generator)
    noise = torch.rand(batch.logprobs.shape, generator=generator)
    assert batch.values is not None
    return PolicyOutput((batch.logprobs + drift) * batch.mask, noise * batch.mask, (batch.values + drift) * batch.mask)


def measured(algorithm: Algorithm, data: Rollout) -> Rollout:
    """The rollout as the collector would fill it for this algorithm."""
    return replace(data, final_values=0.7 * data.truncated) if algorithm.bootstraps else data


def loss_of(algorithm: Algorithm, data: Rollout | None = None) -> float:
    """The loss of the third rollout, so that warm-ups, averages and adaptive coefficients have had their say."""
    rollouts = [measured(algorithm, each) for each in (rollout(seed=5), rollout(seed=6), data or rollout())]
    *_, batch = [algorithm.prepare(each) for each in rollouts]
    return float(algorithm.loss(output_for(batch), batch).loss / algorithm.weight(batch))


OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    (PPO, {"gamma": 0.9}),
    (PPO, {"gae_lambda": 0.5}),
    (PPO, {"value_lambda": 1.0}),
    (PPO, {"bootstrap_truncated": True}),
    (PPO, {"clip_range": 0.05}),
    (PPO, {"clip_range_high": 0.6}),
    (PPO, {"dual_clip": 1.1}),
    (PPO, {"value_clip_range": None}),
    (PPO, {"value_coef": 0.7}),
    (PPO, {"entropy_coef": 0.1}),
    (PPO, {"whiten_advantages": False}),
    (PPO, {"kl": KLPenalty(coef=0.5)}),
    (PPO, {"kl": KLPenalty(estimator="k3")}),
    (PPO, {"kl": KLPenalty(placement="loss", estimator="k2")}),
    (PPO, {"kl": KLPenalty(target=0.01, gain=3.0)}),
    (PPO, {"kl": KLPenalty(target=9.0, gain=3.0)}),
    (PPO, {"truncation_penalty": 1.0}),
    (PPO, {"critic_warmup": 5}),
    (REINFORCE, {"baseline": "none"}),
    (REINFORCE, {"baseline": "moving"}),
    (REINFORCE, {"baseline": "batch"}),
    (REINFORCE, {"reward_to_go": True}),
    (REINFORCE, {"kl": KLPenalty(coef=0.5)}),
    (GRPO, {"clip_range": 0.05}),
    (GRPO, {"clip_range_high": 0.6}),
    (GRPO, {"aggregation": "token"}),
    (GRPO, {"aggregation": "dr_grpo", "max_response_length": 16}),
    (GRPO, {"kl": KLPenalty(coef=0.5, placement="loss", estimator="k3")}),
    (GRPO, {"kl": KLPenalty(coef=0.04, placement="loss", estimator="k3", ratio_weighted=False)}),
    (DAPO, {"clip_range": 0.05}),
    (DAPO, {"clip_range_high": 0.6}),
    (DAPO, {"max_response_length": 5, "overlong_buffer": 4}),
    (DAPO, {"kl": KLPenalty(coef=0.5)}),
    (GSPO, {"clip_range": 0.05}),
    (GSPO, {"clip_range_high": 0.3}),
    (GSPO, {"kl": KLPenalty(coef=0.5)}),
    (CISPO, {"ratio_cap": 0.9}),
    (CISPO, {"scale": "group"}),
    (CISPO, {"kl": KLPenalty(coef=0.5)}),
    (RLOO, {"clip_range": 0.05}),
    (RLOO, {"clip_range_high": 0.6}),
    (RLOO, {"kl": KLPenalty(coef=0.5)}),
    *((kind, {"clip_range": 0.05}) for kind in (REINFORCEPlusPlus, REINFORCEPlusPlusBaseline)),
    *((kind, {"clip_range_high": 0.6}) for kind in (REINFORCEPlusPlus, REINFORCEPlusPlusBaseline)),
    *((kind, {"kl": KLPenalty(coef=0.5)}) for kind in (REINFORCEPlusPlus, REINFORCEPlusPlusBaseline)),
    (ReMax, {"kl": KLPenalty(coef=0.5)}),
    (GDPO, {"clip_range": 0.05}),
    (GDPO, {"clip_range_high": 0.6}),
    (GDPO, {"kl": KLPenalty(coef=0.5)}),
    (RAFT, {"kl": KLPenalty(coef=5.0)}),
    (Distillation, {"gamma": 0.5}),
    (Distillation, {"ratio_cap": 0.9}),
    (DPO, {"beta": 0.5}),
    (DPO, {"loss_type": "ipo"}),
    (DPO, {"loss_type": "ipo_length_normalized"}),
    (DPO, {"loss_type": "hinge"}),
    (DPO, {"loss_type": "apo_zero"}),
    (DPO, {"label_smoothing": 0.2}),
    (DPO, {"label_smoothing": 0.2, "robust": True}),
    (DPO, {"nll_coef": 0.5}),
    (DPO, {"ld_alpha": 0.5}),
    (ORPO, {"odds_ratio_coef": 0.5}),
    (SimPO, {"beta": 1.0}),
    (KTO, {"beta": 0.5}),
    (KTO, {"desirable_weight": 1.5}),
    (KTO, {"undesirable_weight": 0.5}),
    (SimPO, {"gamma": 0.0}),
]


@pytest.mark.parametrize(("kind", "option"), OPTIONS)
def test_every_option_is_felt(kind: Any, option: dict[str, Any]) -> None:
    changed, default = (loss_of(algorithm, rollout(24)) for algorithm in (kind(**deepcopy(option)), kind()))
    assert changed != pytest.approx(default, rel=1e-6)


def test_no_option_is_forgotten() -> None:
    loop = {"responses_per_prompt", "epochs", "minibatches", "update_kl_limit", "moving_decay", "max_response_length"}
    loop |= {"max_refills", "overlong_penalty"}
    for kind in ALGORITHMS:
        felt = {name for other, option in OPTIONS if other is kind for name in option}
        assert {item.name for item in fields(kind) if item.init} - loop <= felt


def test_options_that_need_others_have_tests_of_their_own() -> None:
    long: Any = {"max_response_length": 5, "overlong_buffer": 4}
    assert loss_of(DAPO(**long)) != loss_of(DAPO(**long, overlong_penalty=0.5))
    assert loss_of(DAPO(**long, overlong_penalty=0.0)) == loss_of(DAPO())
    moving = [loss_of(REINFORCE(baseline="moving", moving_decay=decay)) for decay in (0.9, 0.1)]
    assert moving[0] != moving[1]
    lengths = [loss_of(GRPO(aggregation="dr_grpo", max_response_length=length)) for length in (8, 16)]
    kl = GRPO().kl
    assert kl.coef == 0.04
    assert lengths[0] == pytest.approx(2 * lengths[1])
    assert PPO(update_kl_limit=0.1).stop({"kl/update": 0.2})
    assert not PPO(update_kl_limit=0.1).stop({"kl/update": 0.05})
    assert not PPO(update_kl_limit=0.1).stop({"kl/update": 0.1})
    assert not PPO().stop({"kl/update": 9.0})


@pytest.mark.parametrize(
    ("kind", "option", "expected"),
    [
        (PPO, {"epochs": 0}, "PPO.epochs is 0"),
        (PPO, {"clip_range": -1.0}, "PPO.clip_range is -1.0; set it to a positive number"),
        (PPO, {"value_clip_range": 0.0}, "value_clip_range is 0.0"),
        (PPO, {"gamma": 1.5}, "PPO.gamma is 1.5; set it to a number from 0 to 1"),
        (PPO, {"gae_lambda": -0.1}, "gae_lambda is -0.1"),
        (PPO, {"value_lambda": 1.1}, "PPO.value_lambda is 1.1; set it to a number from 0 to 1"),
        (
            PPO,
            {"bootstrap_truncated": True, "truncation_penalty": 0.5},
            "bootstrap_truncated is true and truncation_penalty is 0.5: .* set truncation_penalty to 0, or",
        ),
        (PPO, {"dual_clip": 0.2}, "PPO.dual_clip is 0.2; .* set it above 1"),
        (PPO, {"dual_clip": 1.0}, "PPO.dual_clip is 1.0; .* set it above 1"),
        (GRPO, {"clip_range_high": -0.2}, "GRPO.clip_range_high is -0.2"),
        (GRPO, {"responses_per_prompt": 1}, "GRPO.responses_per_prompt is 1; .* set it to 2 or more"),
        (GRPO, {"aggregation": "dr_grpo"}, "set GRPO.max_response_length"),
        *(
            (kind, {"responses_per_prompt": 1}, f"{kind.__name__}.responses_per_prompt is 1; .* set it to 2 or more")
            for kind in (DAPO, GSPO, CISPO, GDPO, RLOO, REINFORCEPlusPlusBaseline, RAFT)
        ),
        (DAPO, {"max_refills": -1}, "DAPO.max_refills is -1; set it to 0 or more"),
        (DAPO, {"overlong_buffer": 0}, "DAPO.overlong_buffer is 0; set it to a positive number"),
        (DAPO, {"overlong_penalty": -1.0}, "DAPO.overlong_penalty is -1.0; set it to 0 or a positive number"),
        (DAPO, {"max_response_length": 24}, "DAPO.overlong_buffer is 4096; .* set DAPO.overlong_buffer to 24 or less"),
        (Distillation, {"gamma": 1.5}, "Distillation.gamma is 1.5; set it to a number from 0 to 1"),
        (Distillation, {"ratio_cap": 0.0}, "Distillation.ratio_cap is 0.0; set it to a positive number"),
        (CISPO, {"ratio_cap": 0.0}, "CISPO.ratio_cap is 0.0; set it to a positive number"),
        (DPO, {"beta": 0.0}, "DPO.beta is 0.0"),
        (DPO, {"label_smoothing": 0.5}, "below 0.5"),
        (DPO, {"robust": True}, "DPO.robust is true, .* set DPO.label_smoothing above 0"),
        (DPO, {"nll_coef": -1.0}, "DPO.nll_coef is -1.0; set it to 0 or a positive number"),
        (DPO, {"ld_alpha": 1.5}, "DPO.ld_alpha is 1.5; set it to a number from 0 to 1"),
        (ORPO, {"odds_ratio_coef": 0.0}, "ORPO.odds_ratio_coef is 0.0; set it to a positive number"),
        (KTO, {"beta": 0.0}, "KTO.beta is 0.0; set it to a positive number"),
        (KTO, {"undesirable_weight": -1.0}, "KTO.undesirable_weight is -1.0; set it to 0 or a positive number"),
        (SimPO, {"beta": 0.0}, "SimPO.beta is 0.0; set it to a positive number"),
        (SimPO, {"gamma": -1.0}, "SimPO.gamma is -1.0; set it to 0 or a positive number"),
        (SimPO, {"responses_per_prompt": 1}, "SimPO compares the responses to a prompt with each other"),
        (REINFORCE, {"responses_per_prompt": 1}, "leave_one_out .* set it to 2 or more"),
        (REINFORCE, {"moving_decay": 1.0}, "below 1"),
        (KLPenalty, {"coef": -1.0}, "kl.coef is -1.0; set it to 0 or a positive"),
        (KLPenalty, {"target": 0.0}, "positive"),
        (KLPenalty, {"placement": "loss", "ratio_weighted": False}, "expected gradient of zero"),
        (KLPenalty, {"coef": 0.0, "target": 0.1}, "kl.coef is 0; .* set kl.coef above 0"),
        (
            KLPenalty,
            {"ratio_weighted": True},
            "kl.ratio_weighted is true; .* set kl.placement to loss",
        ),
    ],
)
def test_values_that_cannot_work(kind: Any, option: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        kind(**option)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        *((kind, {"responses_per_prompt": 2}) for kind in OF_REWARDS),
        (PPO, {"dual_clip": 1.1, "value_coef": 0.0, "gamma": 0.0, "gae_lambda": 0.0}),
        (REINFORCE, {"baseline": "moving", "responses_per_prompt": 1, "moving_decay": 0.0}),
        (DAPO, {"max_response_length": 24, "overlong_buffer": 24, "overlong_penalty": 0.0, "max_refills": 0}),
        (Distillation, {"gamma": 1.0, "ratio_cap": 0.5}),
        (DPO, {"label_smoothing": 0.4, "ld_alpha": 0.0}),
        (KTO, {"desirable_weight": 0.0, "undesirable_weight": 0.0}),
        (SimPO, {"beta": 0.5, "gamma": 0.0}),
        (KLPenalty, {"coef": 0.0, "gain": 0.5}),
        (KLPenalty, {"target": 0.01}),
        (KLPenalty, {"placement": "loss", "estimator": "k2", "ratio_weighted": False}),
        (KLPenalty, {"placement": "reward", "estimator": "k1", "ratio_weighted": False}),
    ],
)
def test_values_at_their_limits_work(kind: Any, option: dict[str, Any]) -> None:
    made = kind(**option)
    assert {name: getattr(made, name) for name in option} == option


@dataclass
class Bootstrapping(REINFORCE):
    """An own algorithm that has no penalty of truncated responses."""

    needs_values: ClassVar[bool] = True
    bootstrap_truncated: bool = True


def test_an_own_algorithm_may_bootstrap_without_a_truncation_penalty() -> None:
    assert Bootstrapping().bootstraps


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_an_algorithm_reads_what_it_declares(kind: Any) -> None:
    """A rollout of the declared measurements is enough, and one without any of them is not."""
    algorithm, data = kind(), rollout()
    needs = {
        "values": kind.needs_values,
        "baselines": kind.greedy_baseline,
        "mismatched": kind.mismatched_rows,
        "reference_logprobs": algorithm.needs_reference,
    }
    enough = replace(data, **dict.fromkeys((name for name, needed in needs.items() if not needed), None))

    def loss(given: Rollout) -> float:
        batch, said = algorithm.prepare(given), output_for(algorithm.prepare(data))
        values = said.values if kind.needs_values else None
        return float(algorithm.loss(PolicyOutput(said.logprobs, None, values), batch).loss)

    assert math.isfinite(loss(enough))
    assert not algorithm.needs_entropy
    assert kind.rows_per_loss_group == (2 if kind in OF_PAIRS else 1)
    for name in (name for name, needed in needs.items() if needed):
        with pytest.raises(AssertionError):
            loss(replace(enough, **{name: None}))


@pytest.mark.parametrize("kind", [kind for kind in ALGORITHMS if kind not in OF_PAIRS and kind is not KTO])
def test_tokens_off_the_mask_have_an_advantage_of_0(kind: Any) -> None:
    data = rollout()
    advantages = kind().prepare(data).advantages
    assert advantages is not None
    assert advantages[data.mask].any()
    assert advantages[~data.mask].eq(0).all()


@pytest.mark.parametrize("kind", OF_PAIRS)
def test_pairs_are_ordered_without_the_log_probabilities_of_their_policy(kind: Any) -> None:
    assert not kind.prepare_reads_logprobs
    one, other = (kind().prepare(replace(rollout(), logprobs=rollout().logprobs + x)) for x in (0.0, 5.0))
    assert torch.equal(one.rewards, other.rewards)
    assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (DAPO, {"clip_range": 0.2, "clip_range_high": 0.28, "responses_per_prompt": 16, "max_refills": 10}),
        (DAPO, {"overlong_buffer": 4096, "overlong_penalty": 1.0}),
        (GSPO, {"clip_range": 3e-4, "clip_range_high": 4e-4, "minibatches": 4}),
        (CISPO, {"ratio_cap": 5.0, "scale": "batch", "responses_per_prompt": 16}),
        (RLOO, {"clip_range": 0.2, "responses_per_prompt": 2}),
        (REINFORCEPlusPlus, {"clip_range": 0.2}),
    ],
)
def test_defaults_are_those_of_the_papers(kind: Any, numbers: dict[str, Any]) -> None:
    assert {name: getattr(kind(), name) for name in numbers} == numbers


def test_the_kl_of_each_paper_is_the_default() -> None:
    found = {
        kind: (kind().kl.coef, kind().kl.placement, kind().kl.estimator) for kind in KINDS if hasattr(kind(), "kl")
    }
    assert {kind.__name__ for kind, (coef, *_) in found.items() if not coef} == {"DAPO", "GSPO", "CISPO", "RAFT"}
    assert found[RLOO] == (0.05, "reward", "k1")
    assert found[REINFORCEPlusPlus] == (0.01, "reward", "k1")
    assert found[REINFORCEPlusPlusBaseline] == (0.01, "loss", "k2")
    assert found[GRPO] == found[GDPO] == (0.04, "loss", "k3")


def test_the_mean_of_a_group_is_no_part_of_the_baseline_form() -> None:
    """A prompt whose rewards are all higher by 10 has the same advantages."""
    data = rollout()
    higher = replace(data, rewards=data.rewards + 10 * (data.groups == 1))
    first, second = (REINFORCEPlusPlusBaseline().prepare(each).advantages for each in (data, higher))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


# -- the exact policy gradient ---------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 4, 3


def enumerated() -> tuple[Tensor, Tensor, Tensor]:
    """Every response of three tokens, logits that depend on what stands before, and a score for each."""
    torch.manual_seed(3)
    responses = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    logits = torch.randn(1 + VOCABULARY + VOCABULARY**2, VOCABULARY, dtype=torch.float64, requires_grad=True)
    return responses, logits, torch.randn(len(responses), dtype=torch.float64)


def logprobs_of(logits: Tensor, responses: Tensor) -> Tensor:
    states = torch.stack(
        [torch.zeros(len(responses)).long(), 1 + responses[:, 0], 5 + 4 * responses[:, 0] + responses[:, 1]], 1
    )
    return logits.log_softmax(-1)[states].gather(-1, responses[..., None]).squeeze(-1)


@pytest.mark.parametrize(
    "algorithm", [REINFORCE(baseline="none", kl=KLPenalty(coef=0.0)), PPO(whiten_advantages=False, gae_lambda=1.0)]
)
def test_the_gradient_is_the_exact_policy_gradient(algorithm: Any) -> None:
    responses, logits, scores = enumerated()
    if isinstance(algorithm, PPO):
        algorithm = replace(algorithm, kl=KLPenalty(coef=0.0), value_coef=0.0)
    logprobs = logprobs_of(logits, responses)
    probabilities = logprobs.sum(-1).exp()
    (wanted,) = torch.autograd.grad(-(probabilities * scores).sum(), logits, retain_graph=True)
    mask = torch.ones(responses.shape, dtype=torch.bool)
    values = torch.full(responses.shape, 0.3, dtype=torch.float64)  # any baseline leaves the expectation alone
    data = Rollout(
        responses,
        mask,
        mask,
        torch.arange(len(responses)),
        ~mask[:, 0],
        logprobs.detach(),
        logprobs.detach(),
        scores,
        values,
    )
    found = torch.zeros_like(logits)
    batch = algorithm.prepare(data)
    for row in range(len(responses)):  # each response weighs as often as it is drawn
        one = batch.rows(torch.tensor([row]))
        output = PolicyOutput(logprobs[row : row + 1], None, values[row : row + 1])
        (gradient,) = torch.autograd.grad(algorithm.loss(output, one).loss, logits, retain_graph=True)
        found += probabilities[row].detach() * gradient
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_gradient_of_distillation_is_that_of_the_kl(gamma: float) -> None:
    """γ 1: of the KL of whole responses; γ 0: of the KL of each next token, of states that the policy reaches as it is."""
    responses, logits, _ = enumerated()
    teacher = logprobs_of(torch.randn(logits.shape, dtype=torch.float64), responses)
    logprobs, mask = logprobs_of(logits, responses), torch.ones(responses.shape, dtype=torch.bool)
    probabilities = logprobs.sum(-1).exp()
    if gamma:
        kl = (probabilities * (logprobs - teacher).sum(-1)).sum()
    else:  # π(prefix) without gradient, times π(token) (log π - log teacher)
        before = logprobs.detach().cumsum(-1) - logprobs.detach()
        later = logprobs.detach().sum(-1, keepdim=True) - logprobs.detach().cumsum(-1)
        kl = ((before + logprobs + later).exp() * (logprobs - teacher)).sum()
    (wanted,) = torch.autograd.grad(kl, logits, retain_graph=True)
    data = Rollout(
        responses, mask, mask, torch.arange(64), ~mask[:, 0], logprobs.detach(), teacher, torch.zeros(64), None
    )
    algorithm = Distillation(gamma=gamma)
    batch = algorithm.prepare(data)
    found = torch.zeros_like(logits)
    for row in range(len(responses)):  # each response weighs as often as it is sampled
        one = batch.rows(torch.tensor([row]))
        loss = algorithm.loss(PolicyOutput(logprobs[row : row + 1]), one).loss
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        found += probabilities[row].detach() * gradient
    torch.testing.assert_close(found, wanted)


# -- credit ----------------------------------------------------------------------------------------------------------


def test_grpo_by_hand() -> None:
    data = replace(rollout(4, group=4), rewards=torch.tensor([1.0, 2.0, 3.0, 6.0]))
    advantages = GRPO().prepare(data).advantages
    assert advantages is not None
    mean, deviation = 3.0, (14 / 3) ** 0.5
    torch.testing.assert_close(advantages[:, 0], (data.rewards - mean) / (deviation + 1e-4))
    equal = GRPO().prepare(replace(data, rewards=torch.ones(4))).advantages
    assert equal is not None
    assert not equal.any()


def test_grpo_aggregations_by_hand() -> None:
    batch = GRPO().prepare(rollout())
    output = PolicyOutput(batch.logprobs)
    assert batch.advantages is not None
    policy = torch.where(batch.mask, -batch.advantages, torch.zeros(()))
    lengths = batch.mask.sum(-1)
    none = KLPenalty(coef=0.0)
    for aggregation, expected in {
        "sequence": (policy.sum(-1) / lengths).mean(),
        "token": policy.sum() / lengths.sum(),
        "dr_grpo": policy.sum() / (len(batch) * 10),
    }.items():
        algorithm = GRPO(aggregation=aggregation, max_response_length=10, kl=none)  # type: ignore[arg-type]
        found = algorithm.loss(output, batch).loss / algorithm.weight(batch)
        assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_dpo_pairs_best_with_worst_and_ties_weigh_nothing() -> None:
    data = replace(rollout(8, group=4), rewards=torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]))
    batch = DPO(responses_per_prompt=4).prepare(data)
    assert len(batch) == len(data)
    assert batch.rewards[:2].tolist() == [3.0, 0.0]
    assert batch.mask[:2].any(-1).all()
    assert not batch.mask[2:].any()
    assert float(DPO().weight(batch)) == 1.0
    found = DPO(beta=0.3).loss(output_for(batch), batch)
    drift = ((output_for(batch).logprobs - batch.reference_logprobs) * batch.mask).sum(-1)
    assert float(found.loss) == pytest.approx(
        -float(torch.nn.functional.logsigmoid(0.3 * (drift[0] - drift[1]))), rel=1e-5
    )


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_an_unscored_response_teaches_nothing(kind: Any) -> None:
    data = rollout(8, group=4)
    data.mask[2] = False
    other = replace(data, rewards=data.rewards.clone().index_fill_(0, torch.tensor([2]), 99.0))
    losses = []
    for one in (data, other):
        algorithm = kind()
        batch = algorithm.prepare(one)
        losses.append(float(algorithm.loss(output_for(batch), batch).loss))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_loss_and_weight_add_up_over_any_cut(kind: Any) -> None:
    algorithm = kind()
    batch = algorithm.prepare(rollout(8, group=2))
    output = output_for(batch)
    parts, weight = torch.zeros((), dtype=torch.float64), 0.0
    for rows in torch.arange(8).split(2):
        part = batch.rows(rows)
        said = PolicyOutput(*(getattr(output, name)[rows] for name in ("logprobs", "entropy", "values")))
        parts += algorithm.loss(said, part).loss
        weight += float(algorithm.weight(part))
    assert float(parts) == pytest.approx(float(algorithm.loss(output, batch).loss), rel=1e-6)
    assert weight == float(algorithm.weight(batch))


@pytest.mark.parametrize("kind", [kind for kind in ALGORITHMS if issubclass(kind, PolicyGradient)])
@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_a_penalty_of_zero_reads_no_reference(kind: Any, placement: Any) -> None:
    algorithm = kind(kl=KLPenalty(coef=0.0, placement=placement, estimator="k2"))
    assert not algorithm.needs_reference
    assert kind(kl=KLPenalty(coef=0.1)).needs_reference
    losses, gradients = [], []
    for data in (rollout(), replace(rollout(), reference_logprobs=None)):
        batch = algorithm.prepare(data)
        output = output_for(batch)
        output.logprobs.requires_grad_()
        loss = algorithm.loss(output, batch).loss
        losses.append(float(loss))
        gradients.append(torch.autograd.grad(loss, output.logprobs)[0])
    assert losses[0] == losses[1] != 0
    assert torch.equal(*gradients)


def test_the_adaptive_coefficient_and_what_is_remembered() -> None:
    algorithm = PPO(kl=KLPenalty(coef=0.1, target=1e-6))
    algorithm.prepare(replace(rollout(), reference_logprobs=rollout().logprobs - 0.5 * rollout().mask))
    assert algorithm.kl.coef == pytest.approx(0.1 * (1 + 0.1 * 0.2))
    assert algorithm.metrics() == {"kl/coef": algorithm.kl.coef}
    restored = PPO(kl=KLPenalty(coef=0.1, target=1e-6))
    restored.load_state_dict(algorithm.state_dict())
    assert restored.state_dict() == algorithm.state_dict() == {"kl.coef": algorithm.kl.coef, "rollouts": 1}
    average = REINFORCE(baseline="moving")
    average.prepare(rollout())
    assert average.state_dict()["average"] is not None
    assert KTO().metrics() == {"kl/mismatched": 0.0}  # before a rollout
    assert KTO().responses_per_prompt == 1
    assert PPO().metrics() == {}


def test_an_entropy_bonus_reads_the_entropy() -> None:
    assert [PPO(entropy_coef=coef).needs_entropy for coef in (-0.1, 0.0, 0.1)] == [True, False, True]


def test_an_algorithm_is_one_file_under_a_hundred_lines() -> None:
    folder = Path(rlhf_lightning.algorithms.__file__).parent
    files = [
        path
        for path in folder.glob("*.py")
        if path.name not in ("__init__.py", "base.py", "kl_penalty.py", "diagnostics.py")
    ]
    assert len(files) >= 4
    for path in files:
        assert len(path.read_text().splitlines()) < 100, path


ALL_ALGORITHMS = [PPO, DPO, GRPO, REINFORCE]


def numbers(kind: type) -> list[str]:
    """Fields of an algorithm or of its penalty that are numbers."""
    return [each.name for each in fields(kind) if each.init and str(each.type).split(" ")[0] in ("int", "float")]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ALL_ALGORITHMS for name in numbers(kind)])
def test_a_number_out_of_range_is_refused(kind: Any, name: str) -> None:
    whole = next(each for each in fields(kind) if each.name == name).type
    wrong = [-1] if "int" in str(whole) else [-1.0, math.inf, -math.inf, math.nan]
    for value in wrong[1:] if (kind.__name__, name) == ("PPO", "entropy_coef") else wrong:
        with pytest.raises(UserError, match=rf"{kind.__name__}\.{name} is {value}; "):
            kind(**{name: value})


@pytest.mark.parametrize("name", ["coef", "target", "gain"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_a_number_of_the_penalty_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"kl\.{name} is {value}; "):
        KLPenalty(**{name: value})  # type: ignore[arg-type]
