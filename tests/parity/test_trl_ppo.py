"""PPO against two real steps of TRL 1.12's trainer: credit, losses and the gradients of policy and critic, to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.ours import logprobs_under, recorded, rollout_of, rows_of, same, same_gradient
from parity.recipe import language_model, scorer
from torch import Tensor, nn

from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.functional.advantages import gae, token_rewards
from rlhf_lightning.functional.masked import masked_mean, whiten
from rlhf_lightning.functional.policy_losses import clipped_value_loss
from rlhf_lightning.models.critics import SeparateCritic
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reward_model import score_sequences
from rlhf_lightning.types import Batch, Rollout, Rows

FILE = recorded("1.12")
CASES: dict[str, dict[str, Any]] = FILE["cases"]
CUT_OFF = ["ppo/unfinished", "ppo/other options", "ppo/penalty"]
"""Where no response ends by itself, TRL's masks are the tokens that the policy chose."""


def rows_written(case: dict[str, Any]) -> Rows:
    """The responses up to their stop token; TRL's list goes on with padding."""
    return rows_of([case["prompt"]], [[[i for i in ids if i] for ids in case["responses"]]])


class Networks:
    """The policy and a critic of its own, whose head has TRL's weights and no bias."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.language_model, self.scorer = language_model("policy"), scorer("critic")
        critic = SeparateCritic(self.scorer, self.language_model.config.hidden_size)
        critic.head.weight = self.scorer.score.weight
        self.policy = Policy(self.language_model, critic, temperature(case))
        learning: list[nn.Parameter] = [*self.language_model.parameters(), *self.scorer.parameters()]
        self.optimizer = torch.optim.SGD(learning, lr=case["learning_rate"])

    def update(self, loss: Tensor, wanted: dict[str, Any]) -> None:
        """Compare loss and gradients, and take the step."""
        self.optimizer.zero_grad()
        loss.backward()
        same(loss, wanted["loss"])
        same_gradient(self.language_model, wanted["gradient"]["policy"])
        same_gradient(self.scorer, wanted["gradient"]["critic"])
        self.optimizer.step()


def temperature(case: dict[str, Any]) -> float:
    return case["options"].get("temperature", 0.7) + 1e-7  # what TRL adds


def ppo_of(options: dict[str, Any]) -> PPO:
    """TRL's options, and its defaults, by the library's names."""
    return PPO(
        gamma=options.get("gamma", 1.0),
        gae_lambda=options.get("lam", 0.95),
        clip_range=options.get("cliprange", 0.2),
        value_clip_range=options.get("cliprange_value", 0.2),
        value_coef=options.get("vf_coef", 0.1),
        kl=KLPenalty(coef=options.get("kl_coef", 0.05), estimator=options.get("kl_estimator", "k1")),
        truncation_penalty=options.get("missing_eos_penalty", 0.0),
    )


def scored(case: dict[str, Any], rows: Rows, policy: Policy) -> Rollout:
    """The rollout before any update, with the scores of the reward model."""
    with torch.no_grad():
        scores = score_sequences(scorer("reward"), rows.tokens, torch.cat([rows.prompt_mask, rows.mask], 1))
        rollout = rollout_of(rows, "policy", scores.tolist(), temperature(case))
        return replace(rollout, values=policy(rows).values)


def test_the_numbers_are_there() -> None:
    assert FILE["made_with"]["trl"] == "1.12.0"
    assert sorted(CASES) == sorted([*CUT_OFF, "ppo/finished"])
    assert all(len(case["updates"]) == 2 for case in CASES.values())


@pytest.mark.parametrize("name", CUT_OFF)
def test_credit_of_responses_that_were_cut_off(name: str) -> None:
    case = CASES[name]
    wanted, algorithm = case["rollout"], ppo_of(case["options"])
    rollout = scored(case, rows_written(case), Networks(case).policy)
    same(rollout.logprobs, wanted["logprobs"])
    same(rollout.reference_logprobs, wanted["ref_logprobs"])
    same(rollout.values, wanted["values"])
    same(rollout.rewards - algorithm.truncation_penalty, wanted["scores"])
    batch = algorithm.prepare(rollout)
    same(batch.returns, wanted["returns"])
    same(batch.advantages, wanted["whitened"])
    same(replace(algorithm, whiten_advantages=False).prepare(rollout).advantages, wanted["advantages"])


@pytest.mark.parametrize("name", CUT_OFF)
def test_two_epochs_on_responses_that_were_cut_off(name: str) -> None:
    """In the second the policy has moved, so that both clips hold somewhere."""
    case, networks = CASES[name], Networks(CASES[name])
    algorithm = ppo_of(case["options"])
    batch = algorithm.prepare(scored(case, rows_written(case), networks.policy))
    for wanted in case["updates"]:
        found = algorithm.loss(networks.policy(batch), batch)
        for part, metric in (("pg_loss", "loss/policy"), ("vf_loss", "loss/value")):
            total, count = found.means[metric]
            same(total / count, wanted[part])
        networks.update(found.loss / algorithm.weight(batch), wanted)
    assert float(found.means["policy/clip_fraction"][0]) > 0


# -- a response that ends by itself: TRL's score and critic go one position further than the policy's tokens -------------

EARLY, AFTER = 0, 3
"""The row that stops before the end, and the place after its stop token."""


def with_the_place_after(rows: Rows) -> Rows:
    mask = rows.mask.clone()
    mask[EARLY, AFTER] = True
    return replace(rows, mask=mask)


def test_rows_that_fill_the_response_length_have_trls_credit() -> None:
    case = CASES["ppo/finished"]
    rows, algorithm = rows_written(case), replace(ppo_of(case["options"]), whiten_advantages=False)
    batch = algorithm.prepare(scored(case, rows, Networks(case).policy))
    assert batch.advantages is not None
    assert batch.returns is not None
    same(batch.rewards, case["rollout"]["scores"])
    others = [row for row in range(len(rows)) if row != EARLY]
    assert int(rows.mask[others].sum()) == 10
    same(batch.advantages[others], torch.tensor(case["rollout"]["advantages"])[others])
    same(batch.returns[others], torch.tensor(case["rollout"]["returns"])[others])


def test_the_score_stands_on_the_last_token_that_the_policy_chose() -> None:
    """The row that stops early, by hand from TRL's rewards and values: its score moved one place back, nothing after it."""
    case = CASES["ppo/finished"]
    wanted, options = case["rollout"], ppo_of(case["options"])
    rewards, values, score = wanted["rewards"][EARLY], wanted["values"][EARLY], wanted["scores"][EARLY]
    assert rewards[AFTER] == pytest.approx(score)
    third = rewards[2] + score - values[2]
    second = rewards[1] + values[2] - values[1] + 0.95 * third
    first = rewards[0] + values[1] - values[0] + 0.95 * second
    rollout = scored(case, rows_written(case), Networks(case).policy)
    batch = replace(options, whiten_advantages=False).prepare(rollout)
    assert batch.advantages is not None
    same(batch.advantages[EARLY], [first, second, third, 0.0, 0.0])
    assert wanted["advantages"][EARLY][2] != pytest.approx(third, abs=1e-2)


def test_with_the_place_after_the_stop_token_the_credit_and_both_losses_are_trls() -> None:
    """TRL's choice applied to ours: rewards, values and the value loss over the longer mask, the policy loss over the tokens."""
    case, networks = CASES["ppo/finished"], Networks(CASES["ppo/finished"])
    wanted, algorithm = case["rollout"], ppo_of(case["options"])
    rows = rows_written(case)
    longer = with_the_place_after(rows)
    rollout = scored(case, rows, networks.policy)
    old_values = networks.policy(longer).values
    assert old_values is not None
    rewards = token_rewards(rollout.rewards, algorithm.kl.in_reward(rollout), longer.mask)
    same(rewards, wanted["rewards"])
    advantages, returns = gae(rewards, old_values.detach(), longer.mask, algorithm.gamma, algorithm.gae_lambda)
    same(advantages, torch.tensor(wanted["advantages"]) * longer.mask)
    same(returns[longer.mask], torch.tensor(wanted["returns"])[longer.mask])
    batch = Batch.of(rollout, whiten(advantages, rows.mask), returns)
    same(batch.advantages, wanted["whitened"])
    policy_only = replace(algorithm, value_coef=0.0)
    policy_only.rollouts = 1
    for update in case["updates"]:
        output = networks.policy(longer)
        policy = policy_only.loss(output, batch).loss / algorithm.weight(batch)
        value = clipped_value_loss(output.values, old_values.detach(), returns, algorithm.value_clip_range)  # type: ignore[arg-type]
        same(policy, update["pg_loss"])
        same(masked_mean(value, longer.mask), update["vf_loss"])
        networks.update(policy + algorithm.value_coef * masked_mean(value, longer.mask), update)


def test_log_probabilities_up_to_the_stop_token() -> None:
    """TRL fills what stands after it with 1."""
    case = CASES["ppo/finished"]
    rows = rows_written(case)
    for role, name in (("policy", "logprobs"), ("reference", "ref_logprobs")):
        found = logprobs_under(role, rows, temperature(case))
        same(torch.where(rows.mask, found, torch.ones(())), case["rollout"][name])
