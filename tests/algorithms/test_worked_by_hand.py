"""Losses, credit and metrics of two short responses, worked out number by number with plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms.cispo import CISPO
from rlhf_lightning.algorithms.dapo import DAPO
from rlhf_lightning.algorithms.diagnostics import policy_output, update_metrics
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
from rlhf_lightning.types import Batch, PolicyOutput, Rollout

OLD = [[-1.0, -2.0, -0.5], [-0.3, -0.7]]
NOW = [[-0.9, -1.2, -0.6], [-0.8, -0.65]]
REFERENCE = [[-1.2, -1.5, -0.6], [-0.4, -0.6]]
VALUES = [[0.1, 0.2, 0.3], [0.0, -0.1]]
VALUES_NOW = [[0.5, 0.25, -0.4], [0.1, 0.3]]
ENTROPY = [[0.7, 0.4, 0.9], [0.2, 0.6]]
SCORES = [1.0, -0.5]
TOKENS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
NO_KL = KLPenalty(coef=0.0)


def padded(rows: list[list[float]]) -> Tensor:
    """[2, 3]; padding is no zero, so that whoever reads it is found out."""
    return torch.tensor([row + [9.0] * (3 - len(row)) for row in rows])


def rollout(**changes: Any) -> Rollout:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    given: dict[str, Any] = {
        "tokens": torch.zeros(2, 5, dtype=torch.long),
        "prompt_mask": torch.ones(2, 2, dtype=torch.bool),
        "mask": mask,
        "groups": torch.zeros(2, dtype=torch.long),
        "truncated": torch.tensor([True, False]),
        "logprobs": padded(OLD),
        "reference_logprobs": padded(REFERENCE) - 5,
        "rewards": torch.tensor(SCORES),
        "values": padded(VALUES),
        **changes,
    }
    given["reference_logprobs"] = torch.where(given["mask"], padded(REFERENCE), given["reference_logprobs"])
    return Rollout(**given)


def output(gradient: bool = False) -> PolicyOutput:
    return PolicyOutput(
        padded(NOW).requires_grad_(gradient), padded(ENTROPY).requires_grad_(gradient), padded(VALUES_NOW)
    )


def on_tokens(tensor: Tensor | None) -> list[float]:
    assert tensor is not None
    return [float(tensor[row, t]) for row, t in TOKENS]


def credited(advantages: list[float], **changes: Any) -> Batch:
    """A batch with the same advantage on every token of a response, and returns of 0.6 and -0.2."""
    rows = [[a] * 3 for a in advantages]
    return Batch.of(rollout(**changes), torch.tensor(rows), torch.tensor([[0.6] * 3, [-0.2] * 3]))


def value_of(algorithm: Any, batch: Batch) -> float:
    return float(algorithm.loss(output(), batch).loss / algorithm.weight(batch))


def clipped(row: int, t: int, advantage: float, low: float, high: float) -> float:
    ratio = math.exp(NOW[row][t] - OLD[row][t])
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))


# -- PPO -------------------------------------------------------------------------------------------------------------


def ppo(**options: Any) -> PPO:
    algorithm = PPO(**{"kl": NO_KL, **options})
    algorithm.rollouts = 1
    return algorithm


def test_the_loss_of_ppo_is_the_mean_over_the_tokens_that_were_chosen() -> None:
    options = {"clip_range": 0.1, "clip_range_high": 0.3, "value_coef": 0.7, "entropy_coef": 0.05}
    expected = 0.0
    for row, t in TOKENS:
        value, old, wanted = VALUES_NOW[row][t], VALUES[row][t], [0.6, -0.2][row]
        kept = old + min(max(value - old, -0.2), 0.2)
        critic = 0.5 * max((value - wanted) ** 2, (kept - wanted) ** 2)
        expected += clipped(row, t, [2.0, -1.0][row], 0.1, 0.3) + 0.7 * critic - 0.05 * ENTROPY[row][t]
    assert value_of(ppo(**options), credited([2.0, -1.0])) == pytest.approx(expected / len(TOKENS))


def test_the_penalty_in_the_loss_of_ppo_is_added() -> None:
    kl = KLPenalty(coef=0.5, placement="loss", estimator="k2")
    expected = sum(0.5 * (NOW[row][t] - REFERENCE[row][t]) ** 2 / 2 for row, t in TOKENS) / len(TOKENS)
    batch = credited([2.0, -1.0])
    assert value_of(ppo(kl=kl), batch) - value_of(ppo(), batch) == pytest.approx(expected, rel=1e-4)


def test_the_returns_of_ppo_are_of_advantages_before_whitening() -> None:
    plain = PPO(whiten_advantages=False, kl=NO_KL).prepare(rollout())
    white = PPO(kl=NO_KL).prepare(rollout())
    # γ 1: A_t = Σ (0.95)^k δ, the score comes with the last token
    deltas = [[0.2 - 0.1, 0.3 - 0.2, 1.0 - 0.3], [-0.1 - 0.0, -0.5 + 0.1]]
    expected = [sum(0.95 ** (k - t) * deltas[row][k] for k in range(t, len(deltas[row]))) for row, t in TOKENS]
    returns = [a + VALUES[row][t] for a, (row, t) in zip(expected, TOKENS, strict=True)]
    assert on_tokens(plain.advantages) == pytest.approx(expected)
    assert on_tokens(white.returns) == on_tokens(plain.returns) == pytest.approx(returns)
    mean = sum(expected) / 5
    deviation = (sum((a - mean) ** 2 for a in expected) / 4) ** 0.5
    assert on_tokens(white.advantages) == pytest.approx([(a - mean) / deviation for a in expected])


def test_what_a_truncated_response_pays_and_who_it_is() -> None:
    free, fined = (PPO(whiten_advantages=False, kl=NO_KL, truncation_penalty=x).prepare(rollout()) for x in (0.0, 0.4))
    assert free.advantages is not None
    assert fined.advantages is not None
    assert float(fined.advantages[0, 2]) == pytest.approx(float(free.advantages[0, 2]) - 0.4)
    assert torch.equal(fined.advantages[1], free.advantages[1])


@pytest.mark.parametrize("kl", [NO_KL, KLPenalty(placement="loss", estimator="k2")])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_the_policy_moves_from_the_rollout_after_the_warm_up_on(kl: KLPenalty, entropy_coef: float) -> None:
    algorithm = PPO(critic_warmup=2, kl=kl, entropy_coef=entropy_coef)
    moved = []
    for _ in range(4):
        batch = algorithm.prepare(rollout())
        said = output(gradient=True)
        loss = algorithm.loss(said, batch).loss
        gradients = torch.autograd.grad(loss, [said.logprobs, said.entropy], allow_unused=True, materialize_grads=True)
        moved.append(any(bool(gradient.any()) for gradient in gradients))
    assert moved == [False, False, True, True]


# -- the KL penalty --------------------------------------------------------------------------------------------------


def test_the_penalty_is_paid_once_in_the_reward_or_in_the_loss() -> None:
    difference = [OLD[row][t] - REFERENCE[row][t] for row, t in TOKENS]
    rewarded = KLPenalty(coef=0.5, estimator="k2")
    assert on_tokens(rewarded.in_reward(rollout())) == pytest.approx([0.5 * d * d / 2 for d in difference])
    assert not rewarded.in_loss(padded(NOW), credited([0.0, 0.0])).any()
    lost = KLPenalty(coef=0.5, estimator="k3", placement="loss", ratio_weighted=False)
    assert not lost.in_reward(rollout()).any()
    now = [NOW[row][t] - REFERENCE[row][t] for row, t in TOKENS]
    expected = [0.5 * (math.exp(-d) - 1 + d) for d in now]
    assert on_tokens(lost.in_loss(padded(NOW), credited([0.0, 0.0]))) == pytest.approx(expected)
    ratios = [math.exp(NOW[row][t] - OLD[row][t]) for row, t in TOKENS]
    for weighted in (True, None):
        found = replace(lost, ratio_weighted=weighted).in_loss(padded(NOW), credited([0.0, 0.0]))
        assert on_tokens(found) == pytest.approx([r * x for r, x in zip(ratios, expected, strict=True)])
    squares = replace(lost, estimator="k2", ratio_weighted=None).in_loss(padded(NOW), credited([0.0, 0.0]))
    assert on_tokens(squares) == pytest.approx([0.5 * d * d / 2 for d in now], rel=1e-5)  # no ratio


def test_the_adaptive_coefficient_follows_the_mean_over_chosen_tokens_within_its_clip() -> None:
    kl = sum(OLD[row][t] - REFERENCE[row][t] for row, t in TOKENS) / len(TOKENS)
    data = rollout(logprobs=padded([[x + 1 for x in row] for row in OLD]))  # a mean of kl + 1, so that it is positive
    for target, step in {(kl + 1) / 1.1: 0.1, (kl + 1) / 0.9: -0.1, 0.01: 0.2, 100.0: -0.2}.items():
        penalty = KLPenalty(coef=0.5, target=target, gain=0.3)
        penalty.adapt(data)
        assert penalty.coef == pytest.approx(0.5 * (1 + 0.3 * step), rel=1e-5)
        unchanged = penalty.coef
        penalty.adapt(rollout(mask=torch.zeros(2, 3, dtype=torch.bool)))  # in which nothing was scored
        assert penalty.coef == unchanged


def test_step_rewards_and_final_values_reach_the_advantages_of_ppo() -> None:
    steps = torch.tensor([[0.75, 0.0, 0.25], [0.0, -0.5, 0.0]])  # of scores 1 and -0.5
    found = ppo(gamma=0.9, gae_lambda=0.5, whiten_advantages=False).prepare(
        rollout(step_rewards=steps, final_values=torch.tensor([2.0, 0.0]))
    )
    values = VALUES[0]
    third = 0.25 + 0.9 * 2.0 - values[2]
    second = 0.0 + 0.9 * values[2] - values[1] + 0.45 * third
    first = 0.75 + 0.9 * values[1] - values[0] + 0.45 * second
    assert found.advantages is not None
    assert found.advantages[0].tolist() == pytest.approx([first, second, third], rel=1e-5)
    alone = ppo(gamma=0.9, gae_lambda=0.5, whiten_advantages=False).prepare(rollout())
    assert torch.equal(found.advantages[1], alone.advantages[1])  # type: ignore[index]  # its step is its last token


def test_a_truncated_response_gets_the_value_of_what_would_follow_instead_of_the_score_of_its_end() -> None:
    """Row 0 is truncated with a score of 1, of which a step gave 0.75; row 1 ended with -0.5."""
    steps = torch.tensor([[0.75, 0.0, 0.0], [0.0, 0.0, 0.0]])
    given = rollout(step_rewards=steps, final_values=torch.tensor([2.0, 0.0]))
    found = ppo(gamma=0.9, gae_lambda=0.5, whiten_advantages=False).prepare(given).advantages
    values = VALUES[0]
    third = 0.9 * 2.0 - values[2]
    second = 0.9 * values[2] - values[1] + 0.45 * third
    first = 0.75 + 0.9 * values[1] - values[0] + 0.45 * second
    assert on_tokens(found)[:3] == pytest.approx([first, second, third], rel=1e-5)
    alone = ppo(gamma=0.9, gae_lambda=0.5, whiten_advantages=False).prepare(rollout())
    assert on_tokens(found)[3:] == on_tokens(alone.advantages)[3:]


def test_the_critic_learns_returns_of_its_own_lambda() -> None:
    """With λ 1 the returns are the discounted rewards that follow, whatever the critic said; the advantages stay."""
    options: Any = {"gamma": 0.9, "gae_lambda": 0.5, "whiten_advantages": False}
    found, plain = (ppo(value_lambda=value, **options).prepare(rollout()) for value in (1.0, None))
    assert on_tokens(found.advantages) == on_tokens(plain.advantages)
    assert on_tokens(found.returns) == pytest.approx([0.81, 0.9, 1.0, -0.45, -0.5])
    assert on_tokens(plain.returns) != pytest.approx(on_tokens(found.returns))


def test_a_skipped_rollout_does_not_count_for_the_warm_up() -> None:
    algorithm = PPO(critic_warmup=1, kl=NO_KL)
    nothing = rollout(mask=torch.zeros(2, 3, dtype=torch.bool))
    for given, counted in ((nothing, 0), (rollout(), 1), (nothing, 1), (rollout(), 2)):
        algorithm.prepare(given)
        assert algorithm.rollouts == counted
    assert algorithm.state_dict()["rollouts"] == 2


# -- REINFORCE -------------------------------------------------------------------------------------------------------


def test_the_return_of_reinforce_pays_the_kl_of_the_whole_response() -> None:
    batch = REINFORCE(baseline="none", kl=KLPenalty(coef=0.5)).prepare(rollout())
    returns = [
        score - 0.5 * sum(a - b for a, b in zip(old, reference, strict=True))
        for score, old, reference in zip(SCORES, OLD, REFERENCE, strict=True)
    ]
    assert on_tokens(batch.advantages) == pytest.approx([returns[row] for row, _ in TOKENS])


def test_the_loss_of_reinforce_is_a_mean_over_responses() -> None:
    expected = -(2.0 * sum(NOW[0]) - 1.0 * sum(NOW[1])) / 2
    assert value_of(REINFORCE(kl=NO_KL), credited([2.0, -1.0])) == pytest.approx(expected)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "batch"])
def test_a_token_of_reinforce_is_credited_with_what_follows_it(baseline: Any) -> None:
    steps = torch.tensor([[0.75, 0.0, 0.25], [0.0, -0.5, 0.0]])
    data = rollout(step_rewards=steps)
    whole = on_tokens(REINFORCE(baseline=baseline, kl=NO_KL).prepare(data).advantages)
    found = on_tokens(REINFORCE(baseline=baseline, kl=NO_KL, reward_to_go=True).prepare(data).advantages)
    scale = 1.125**0.5 if baseline == "batch" else 1.0
    before = [0.0, 0.75, 0.75, 0.0, 0.0]  # what each token's response got before it
    assert found == pytest.approx([a - b / scale for a, b in zip(whole, before, strict=True)], abs=1e-6)


def test_reward_to_go_without_steps_leaves_out_the_penalties_before_a_token() -> None:
    found = on_tokens(
        REINFORCE(baseline="none", kl=KLPenalty(coef=0.5), reward_to_go=True).prepare(rollout()).advantages
    )
    paid = [0.5 * (OLD[row][t] - REFERENCE[row][t]) for row, t in TOKENS]
    expected = [1.0 - sum(paid[:3]), 1.0 - sum(paid[1:3]), 1.0 - paid[2], -0.5 - sum(paid[3:]), -0.5 - paid[4]]
    assert found == pytest.approx(expected)


def test_the_baselines_of_reinforce() -> None:
    def advantages(algorithm: REINFORCE, scores: list[float]) -> list[float]:
        found = algorithm.prepare(rollout(rewards=torch.tensor(scores))).advantages
        assert found is not None
        return found[:, 0].tolist()

    assert advantages(REINFORCE(baseline="leave_one_out", kl=NO_KL), [1.0, -0.5]) == pytest.approx([1.5, -1.5])
    whitened = [0.75 / 1.125**0.5, -0.75 / 1.125**0.5]
    assert advantages(REINFORCE(baseline="batch", kl=NO_KL), [1.0, -0.5]) == pytest.approx(whitened)
    close = advantages(REINFORCE(baseline="batch", kl=NO_KL), [1e-9, -1e-9])
    assert close[0] > 0 > close[1]
    moving = REINFORCE(baseline="moving", moving_decay=0.8, kl=NO_KL)
    assert advantages(moving, [1.0, 3.0]) == pytest.approx([-1.0, 1.0])  # the first has nothing earlier: its own mean
    moving.prepare(rollout(rewards=torch.zeros(2), mask=torch.zeros(2, 3, dtype=torch.bool)))  # nothing was scored
    assert advantages(moving, [6.0, 8.0]) == pytest.approx([4.0, 6.0])  # the mean of those before, 2
    assert advantages(moving, [0.0, 0.0]) == pytest.approx([-3.0, -3.0])  # 0.8 · 2 + 0.2 · 7


# -- GRPO and DPO ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("aggregation", "divisors"), [("sequence", (6, 4)), ("token", (5, 5)), ("dr_grpo", (20, 20))])
def test_the_loss_of_grpo_with_its_kl(aggregation: Any, divisors: tuple[int, int]) -> None:
    algorithm = GRPO(clip_range=0.1, clip_range_high=0.3, aggregation=aggregation, max_response_length=10)
    expected = 0.0
    for row, t in TOKENS:
        d = NOW[row][t] - REFERENCE[row][t]
        ratio = math.exp(NOW[row][t] - OLD[row][t])
        loss = clipped(row, t, [2.0, -1.0][row], 0.1, 0.3) + 0.04 * ratio * (math.exp(-d) - 1 + d)
        expected += loss / divisors[row]
    assert value_of(algorithm, credited([2.0, -1.0])) == pytest.approx(expected)


def test_dr_grpo_leaves_the_deviation_out() -> None:
    batch = GRPO(aggregation="dr_grpo", max_response_length=10).prepare(rollout())
    assert on_tokens(batch.advantages) == pytest.approx([0.75] * 3 + [-0.75] * 2)


def test_the_loss_of_dpo_with_its_lengths() -> None:
    drift = [sum(a - b for a, b in zip(now, ref, strict=True)) for now, ref in zip(NOW, REFERENCE, strict=True)]
    batch = DPO().prepare(rollout())
    for kind, expected in {
        "sigmoid": math.log(1 + math.exp(-0.3 * (drift[0] - drift[1]))),
        "ipo": (drift[0] - drift[1] - 1 / 0.6) ** 2,
        "ipo_length_normalized": (drift[0] / 3 - drift[1] / 2 - 1 / 0.6) ** 2,
    }.items():
        assert value_of(DPO(beta=0.3, loss_type=kind), batch) == pytest.approx(expected)  # type: ignore[arg-type]


def test_the_losses_without_a_reference() -> None:
    """Two recorded responses, the first better with probability 0.9; the NLL has the weight 2p - 1."""
    data = rollout(preferences=torch.tensor([0.9, 0.1]))
    mean = [sum(row) / len(row) for row in NOW]
    margin = mean[0] - mean[1]
    odds = [math.exp(m) / (1 - math.exp(m)) for m in mean]
    ratio = math.log(odds[0]) - math.log(odds[1])
    simpo = 0.9 * math.log1p(math.exp(0.5 - 2 * margin)) + 0.1 * math.log1p(math.exp(0.5 + 2 * margin))
    orpo = 0.9 * math.log1p(math.exp(-ratio)) + 0.1 * math.log1p(math.exp(ratio))
    for algorithm, expected, logged in (
        (SimPO(beta=2.0, gamma=0.5), simpo, 2 * margin),
        (ORPO(odds_ratio_coef=0.3), -0.8 * mean[0] + 0.3 * orpo, ratio),
    ):
        batch = algorithm.prepare(replace(data, reference_logprobs=None))
        assert value_of(algorithm, batch) == pytest.approx(expected)
        assert float(algorithm.loss(output(), batch).means["preference/margin"][0]) == pytest.approx(logged, rel=1e-5)
        assert not algorithm.needs_reference


@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize(("label", "weight", "sign"), [(1.0, 1.5, 1), (0.0, 0.7, -1)])
def test_kto_takes_z_from_the_mismatched_rows_and_learns_from_the_others(
    other: int, label: float, weight: float, sign: int
) -> None:
    drift = [sum(a - b for a, b in zip(now, ref, strict=True)) for now, ref in zip(NOW, REFERENCE, strict=True)]
    before = [sum(a - b for a, b in zip(old, ref, strict=True)) for old, ref in zip(OLD, REFERENCE, strict=True)]
    own, algorithm, mismatched = 1 - other, KTO(beta=0.4, desirable_weight=1.5, undesirable_weight=0.7), torch.arange(2)
    for shift in (-1.0, 3.0):  # of the policy before the step, so that z is cut off at 0 and is not
        z = max(0.0, before[other] + shift * len(OLD[other]))
        data = rollout(rewards=torch.full((2,), label), mismatched=mismatched == other, logprobs=padded(OLD) + shift)
        batch = algorithm.prepare(data)
        assert algorithm.state_dict() == {"z": pytest.approx(z, abs=1e-6)}
        assert (z > 0) == (shift > 0)
        assert batch.mask.any(-1).tolist() == (mismatched == own).tolist()
        found = algorithm.loss(output(), batch)
        loss = weight * (1 - 1 / (1 + math.exp(-sign * 0.4 * (drift[own] - z))))
        assert float(found.loss) == pytest.approx(loss)
        assert float(algorithm.weight(batch)) == 1.0
        measured = found.means["implicit_reward/good" if label else "implicit_reward/bad"]
        assert [float(x) for x in measured] == [pytest.approx(0.4 * drift[own]), 1.0]
        assert [float(x) for x in found.means["loss/policy"]] == [pytest.approx(loss), 1.0]
        update = sum(old + shift - now for old, now in zip(OLD[own], NOW[own], strict=True))
        assert [float(x) for x in found.means["kl/update"]] == [pytest.approx(update), len(OLD[own])]


def test_the_nll_of_rpo_is_per_token_of_the_chosen_response() -> None:
    batch = DPO().prepare(rollout(preferences=torch.tensor([0.9, 0.1])))
    plain, found = value_of(DPO(), batch), DPO(nll_coef=0.7).loss(output(), batch)
    nll = 0.8 * -sum(NOW[0]) / 3
    assert float(found.loss) == pytest.approx(plain + 0.7 * nll)
    assert float(found.means["loss/nll"][0]) == pytest.approx(nll)


# -- what is logged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [ppo(), REINFORCE(), GRPO(), DPO()])
def test_what_a_loss_reports_holds_no_graph(algorithm: Any) -> None:
    said = output(gradient=True)
    found = algorithm.loss(said, DPO().prepare(rollout()) if isinstance(algorithm, DPO) else credited([2.0, -1.0]))
    assert found.loss.requires_grad
    assert not any(x.requires_grad for pair in found.means.values() for x in pair)
    assert not any(x.requires_grad for x in found.maxima.values())


@pytest.mark.parametrize("algorithm", [ppo(), REINFORCE(), GRPO(), DPO()])
def test_how_far_an_update_went_is_a_mean_over_chosen_tokens(algorithm: Any) -> None:
    batch = DPO().prepare(rollout()) if isinstance(algorithm, DPO) else credited([2.0, -1.0])
    total, count = algorithm.loss(output(), batch).means["kl/update"]
    expected = sum(OLD[row][t] - NOW[row][t] for row, t in TOKENS)
    assert (float(total), int(count)) == (pytest.approx(expected), 5)


@pytest.mark.parametrize(
    "algorithm", [ppo(clip_range=0.3, clip_range_high=0.08), GRPO(clip_range=0.3, clip_range_high=0.08)]
)
def test_clipped_tokens_and_the_largest_ratio(algorithm: Any) -> None:
    found = algorithm.loss(output(), credited([2.0, -1.0]))
    # ratios e^0.1, e^0.8, e^-0.1, e^-0.5, e^0.05: the first two are above 1.08, the fourth is below 0.7
    assert [float(x) for x in found.means["policy/clip_fraction"]] == [3.0, 5.0]
    assert float(found.maxima["policy/ratio_max"]) == pytest.approx(math.exp(0.8))


def test_a_ratio_at_its_bound_is_not_clipped_and_padding_has_none() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    ratio = torch.tensor([[0.5, 2.0, 0.25, 4.0, 8.0]])
    means, _ = update_metrics(ratio.log(), mask, 0.5, 1.0, ratio)
    assert [float(x) for x in means["policy/clip_fraction"]] == [2.0, 4.0]
    batch = credited([2.0, -1.0])
    shifted = replace(batch, logprobs=torch.where(batch.mask, batch.logprobs, 5.0))  # of padding, e^4 less than now
    found = policy_output(GRPO(), torch.zeros(2, 3), output(), shifted, clip=(0.3, 0.08))
    assert float(found.maxima["policy/ratio_max"]) == pytest.approx(math.exp(0.8))


@pytest.mark.parametrize("kind", [REINFORCE, GRPO, DAPO, GSPO, CISPO, RLOO, REINFORCEPlusPlus, GDPO, RAFT])
def test_without_a_kl_penalty_the_loss_is_that_of_the_policy(kind: Any) -> None:
    algorithm = kind(kl=NO_KL)
    found = algorithm.loss(output(), credited([2.0, -1.0]))
    total, count = found.means["loss/policy"]
    assert float(total) == pytest.approx(float(found.loss))
    assert float(count) == float(algorithm.weight(credited([2.0, -1.0])))


def test_the_accuracy_and_the_margin_of_dpo_are_of_the_chosen_response() -> None:
    found = DPO(beta=0.3).loss(output(), DPO().prepare(rollout()))
    drift = [sum(a - b for a, b in zip(now, ref, strict=True)) for now, ref in zip(NOW, REFERENCE, strict=True)]
    assert float(found.means["preference/margin"][0]) == pytest.approx(0.3 * (drift[0] - drift[1]))
    assert float(found.means["preference/accuracy"][0]) == float(drift[0] > drift[1])


# -- corrections of GRPO, and relatives of REINFORCE -------------------------------------------------------------------


def ratio_of_row(row: int, mean: bool) -> float:
    """exp of the sum or the mean of log π - log π_old over the tokens of a response."""
    total = sum(now - old for now, old in zip(NOW[row], OLD[row], strict=True))
    return math.exp(total / len(OLD[row]) if mean else total)


def clipped_row(ratio: float, advantage: float, low: float, high: float) -> float:
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))


def test_dapo_is_a_mean_over_tokens_with_a_higher_upper_clip() -> None:
    for advantages in ([2.0, -1.0], [-2.0, 1.0]):
        expected = sum(clipped(row, t, advantages[row], 0.2, 0.28) for row, t in TOKENS) / 5
        assert value_of(DAPO(), credited(advantages)) == pytest.approx(expected)
    assert math.exp(NOW[0][1] - OLD[0][1]) > 1.28  # the upper clip holds a token


def test_a_long_response_pays_dapo_a_part_of_the_penalty() -> None:
    """Lengths 3 and 2 of 4 tokens, a buffer of 2: half of the penalty, and none."""
    batch = DAPO(max_response_length=4, overlong_buffer=2, overlong_penalty=0.6).prepare(rollout())
    returns = [1.0 - 0.3, -0.5]
    half = (returns[0] - returns[1]) / 2
    expected = half / (math.sqrt(2 * half**2) + 1e-4)
    assert on_tokens(batch.advantages) == pytest.approx([expected] * 3 + [-expected] * 2)


def test_dapo_learns_from_prompts_whose_rewards_differ() -> None:
    groups, valid = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([True] * 5 + [False])
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    found = DAPO().teaches(rewards, groups, valid)
    assert found is not None
    assert found.tolist() == [False, False, True, True, False, False]
    assert DAPO(max_refills=0).teaches(rewards, groups, valid) is None


def test_the_advantages_of_gspo_are_those_of_the_group() -> None:
    half = (SCORES[0] - SCORES[1]) / 2
    expected = half / (math.sqrt(2) * half + 1e-4)
    assert on_tokens(GSPO().prepare(rollout()).advantages) == pytest.approx([expected] * 3 + [-expected] * 2)


def test_gspo_clips_the_mean_ratio_of_a_response() -> None:
    for advantages in ([2.0, -1.0], [-2.0, 1.0]):
        expected = sum(clipped_row(ratio_of_row(row, True), advantages[row], 0.1, 0.2) for row in (0, 1)) / 2
        assert value_of(GSPO(clip_range=0.1, clip_range_high=0.2), credited(advantages)) == pytest.approx(expected)


def test_the_metrics_of_gspo_are_of_the_ratio_of_a_response() -> None:
    batch = credited([2.0, -1.0])
    found = GSPO(clip_range=0.1, clip_range_high=0.2).loss(output(), batch)
    ratios = [ratio_of_row(row, True) for row in (0, 1)]
    assert ratios[0] > 1.2
    assert ratios[1] < 0.9
    assert [float(x) for x in found.means["policy/clip_fraction"]] == [5.0, 5.0]
    assert float(found.maxima["policy/ratio_max"]) == pytest.approx(max(ratios))
    update = sum(OLD[row][t] - NOW[row][t] for row, t in TOKENS)
    assert float(found.means["kl/update"][0]) == pytest.approx(update, abs=1e-6)


def test_the_weight_of_cispo_is_capped_and_has_no_gradient() -> None:
    batch, said = credited([2.0, -1.0]), output(gradient=True)
    found = CISPO(ratio_cap=1.05).loss(said, batch)
    weights = {(row, t): min(math.exp(NOW[row][t] - OLD[row][t]), 1.05) for row, t in TOKENS}
    expected = {(row, t): -weight * [2.0, -1.0][row] for (row, t), weight in weights.items()}
    loss = sum(slope * NOW[row][t] for (row, t), slope in expected.items())
    assert float(found.loss) == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(found.loss, said.logprobs)
    assert on_tokens(gradient) == pytest.approx([expected[place] for place in TOKENS])
    assert sorted(weights.values())[-2:] == [1.05, 1.05]
    assert [float(x) for x in found.means["policy/clip_fraction"]] == [3.0, 5.0]


@pytest.mark.parametrize(("scale", "deviation"), [("batch", math.sqrt(2.5 / 3)), ("group", None)])
def test_the_advantages_of_cispo_are_divided_by_a_deviation(scale: Any, deviation: float | None) -> None:
    """Two groups of rewards 1, 0 and 3, 1: differences from the mean ±½ and ±1."""
    rows = {"groups": torch.tensor([0, 0, 1, 1]), "rewards": torch.tensor([1.0, 0.0, 3.0, 1.0])}
    data = rollout().rows(torch.tensor([0, 1, 0, 1]))
    found = CISPO(scale=scale).prepare(replace(data, **rows)).advantages
    assert found is not None
    differences = [0.5, -0.5, 1.0, -1.0]
    scales = [deviation] * 4 if deviation else [math.sqrt(0.5)] * 2 + [math.sqrt(2.0)] * 2
    expected = [each / (scale + 1e-4) for each, scale in zip(differences, scales, strict=True)]
    assert found[:, 0].tolist() == pytest.approx(expected)


def test_rloo_clips_the_ratio_of_a_whole_response() -> None:
    batch = RLOO(kl=KLPenalty(coef=0.5)).prepare(rollout())
    paid = [0.5 * sum(a - b for a, b in zip(old, ref, strict=True)) for old, ref in zip(OLD, REFERENCE, strict=True)]
    difference = (SCORES[0] - paid[0]) - (SCORES[1] - paid[1])
    assert on_tokens(batch.advantages) == pytest.approx([difference] * 3 + [-difference] * 2)
    expected = sum(clipped_row(ratio_of_row(row, False), a, 0.2, 0.3) for row, a in ((0, difference), (1, -difference)))
    assert value_of(RLOO(clip_range_high=0.3, kl=NO_KL), batch) == pytest.approx(expected / 2)


def test_reinforce_plus_plus_whitens_the_rewards_to_go_over_all_tokens() -> None:
    batch = REINFORCEPlusPlus(kl=KLPenalty(coef=0.5)).prepare(rollout())
    paid = [[0.5 * (a - b) for a, b in zip(old, ref, strict=True)] for old, ref in zip(OLD, REFERENCE, strict=True)]
    following = [SCORES[row] - sum(paid[row][t:]) for row, t in TOKENS]
    mean = sum(following) / 5
    deviation = math.sqrt(sum((x - mean) ** 2 for x in following) / 4)
    assert on_tokens(batch.advantages) == pytest.approx([(x - mean) / deviation for x in following], rel=1e-5)
    expected = sum(clipped(row, t, [2.0, -1.0][row], 0.2, 0.2) for row, t in TOKENS) / 5
    assert value_of(REINFORCEPlusPlus(), credited([2.0, -1.0])) == pytest.approx(expected)


def test_the_baseline_form_whitens_what_is_left_of_the_mean_of_the_group() -> None:
    """Differences ±0.75 on 3 and 2 tokens; k2 in the loss, which is not in the rewards."""
    algorithm = REINFORCEPlusPlusBaseline(kl=KLPenalty(coef=0.5, placement="loss", estimator="k2"))
    batch = algorithm.prepare(rollout())
    centered = [0.75] * 3 + [-0.75] * 2
    mean = sum(centered) / 5
    deviation = math.sqrt(sum((x - mean) ** 2 for x in centered) / 4)
    assert on_tokens(batch.advantages) == pytest.approx([(x - mean) / deviation for x in centered], rel=1e-5)
    expected = sum(
        clipped(row, t, [2.0, -1.0][row], 0.2, 0.2) + 0.5 * (NOW[row][t] - REFERENCE[row][t]) ** 2 / 2
        for row, t in TOKENS
    )
    assert value_of(algorithm, credited([2.0, -1.0])) == pytest.approx(expected / 5)


def test_remax_subtracts_the_score_of_the_greedy_response() -> None:
    batch = ReMax(kl=NO_KL).prepare(rollout(baselines=torch.tensor([0.25, 0.5])))
    assert on_tokens(batch.advantages) == pytest.approx([0.75] * 3 + [-1.0] * 2)
    assert value_of(ReMax(kl=NO_KL), batch) == pytest.approx(-(0.75 * sum(NOW[0]) - 1.0 * sum(NOW[1])) / 2)


def test_raft_learns_the_tokens_of_the_best_response() -> None:
    algorithm = RAFT()
    batch = algorithm.prepare(rollout(rewards=torch.tensor([-0.5, 1.0])))
    assert batch.mask.any(-1).tolist() == [False, True]
    assert value_of(algorithm, batch) == pytest.approx(-sum(NOW[1]) / 2)
    assert not RAFT().prepare(rollout(rewards=torch.tensor([1.0, 1.0]))).mask.any()
    expensive = RAFT(kl=KLPenalty(coef=10.0))  # the KL of the responses is -0.2 and 0, so the first gains 2
    assert expensive.prepare(rollout(rewards=torch.tensor([-0.5, 1.0]))).mask.any(-1).tolist() == [True, False]


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_distillation_raises_what_the_teacher_finds_more_likely(gamma: float) -> None:
    algorithm = Distillation(gamma=gamma, ratio_cap=1.05)
    batch = algorithm.prepare(rollout())
    gaps = [[b - a for a, b in zip(old, ref, strict=True)] for old, ref in zip(OLD, REFERENCE, strict=True)]
    expected = [sum(gamma ** (k - t) * gaps[row][k] for k in range(t, len(gaps[row]))) for row, t in TOKENS]
    assert on_tokens(batch.advantages) == pytest.approx(expected, abs=1e-6)
    weights = [min(math.exp(NOW[row][t] - OLD[row][t]), 1.05) for row, t in TOKENS]
    losses = [-w * a * NOW[row][t] for w, a, (row, t) in zip(weights, expected, TOKENS, strict=True)]
    assert value_of(algorithm, batch) == pytest.approx(sum(losses) / 5)
    assert [float(x) for x in algorithm.loss(output(), batch).means["policy/clip_fraction"]] == [3.0, 5.0]


def test_gdpo_normalises_each_reward_before_it_is_weighed() -> None:
    """Four responses; the second reward has a hundredth of the spread of the first, and half of its weight."""
    data = rollout().rows(torch.tensor([0, 1, 0, 1]))
    scores = torch.tensor([[1.0, 0.01], [0.0, 0.02], [3.0, math.nan], [1.0, 0.04]])
    options = {"groups": torch.tensor([0, 0, 1, 1]), "components": scores}
    data = replace(data, **options, component_weights=torch.tensor([[1.0, 0.5]] * 4))
    found = GDPO(kl=NO_KL).prepare(data).advantages
    assert found is not None
    first, second = 0.5 / (math.sqrt(0.5) + 1e-4), 0.005 / (math.sqrt(2) * 0.005 + 1e-4)
    third = 1.0 / (math.sqrt(2.0) + 1e-4)
    sums = [first - 0.5 * second, -first + 0.5 * second, third, -third]
    deviation = math.sqrt(sum(x * x for x in sums) / 3) + 1e-4
    assert found[:, 0].tolist() == pytest.approx([x / deviation for x in sums])
    alone = replace(data, components=None, component_weights=None, rewards=torch.tensor([1.0, 0.0, 3.0, 1.0]))
    single = GDPO(kl=NO_KL).prepare(alone).advantages
    assert single is not None
    plain = math.sqrt((2 * first**2 + 2 * third**2) / 3) + 1e-4
    assert single[:, 0].tolist() == pytest.approx([first / plain, -first / plain, third / plain, -third / plain])


def test_gdpo_subtracts_a_kl_penalty_in_the_reward_from_the_sum() -> None:
    """The KL of the first response is -0.2 and that of the second 0, so a coefficient of 20 gives the first 4 more."""
    data = rollout(rewards=torch.tensor([0.0, 1.0]))
    for coef, sign in ((0.0, -1), (20.0, 1)):
        found = on_tokens(GDPO(kl=KLPenalty(coef=coef)).prepare(data).advantages)
        assert found == pytest.approx([sign * 0.5**0.5] * 3 + [-sign * 0.5**0.5] * 2, abs=1e-3)
