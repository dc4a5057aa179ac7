"""Advantages and losses against explicit sums, numbers worked by hand, and an independent implementation's fixture."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional.advantages import (
    batch_normalized,
    best_and_worst,
    best_of_group,
    explained_variance,
    gae,
    group_centered,
    group_moments,
    group_normalized,
    last_token,
    leave_one_out,
    normalized_components,
    overlong_penalty,
    reward_to_go,
    token_rewards,
)
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_mean, masked_moments, row_mean, whiten
from rlhf_lightning.functional.policy_losses import capped_policy_loss, clipped_policy_loss, clipped_value_loss
from rlhf_lightning.functional.preference_losses import (
    bradley_terry_loss,
    kto_loss,
    length_desensitized,
    preference_agreement,
    preference_loss,
)

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5, 0.0], [-0.3, -0.7, -1.1, -0.2]])
REFERENCE = torch.tensor([[-1.2, -1.5, -0.6, 0.0], [-0.4, -0.6, -1.0, -0.9]])
VALUES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, -0.1, 0.2, 0.5]])
MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])
SCORES = torch.tensor([1.0, -0.5])


def fixture_rewards() -> torch.Tensor:
    return token_rewards(SCORES, 0.05 * kl_estimate(LOGPROBS, REFERENCE), MASK)


def test_rewards_of_the_fixture() -> None:
    # row 2 is TRL 1.12's; in row 1 the score stands on the third token, the last that the policy chose
    expected = [[-0.01, 0.025, -0.005 + 1.0, 0.0], [-0.005, 0.005, 0.005, -0.535]]
    torch.testing.assert_close(fixture_rewards(), torch.tensor(expected))


def test_padding_pays_nothing() -> None:
    found = token_rewards(SCORES, torch.full((2, 4), 0.5), MASK)
    assert found.tolist() == [[-0.5, -0.5, 0.5, 0.0], [-0.5, -0.5, -0.5, -1.0]]


def test_step_rewards_by_hand() -> None:
    """Two rows: step rewards on tokens 0 and 2; a step reward on a token that the policy read, which the last one gets."""
    steps = torch.tensor([[0.5, 0.0, 0.25, 0.0], [0.0, 1.0, 0.0, -0.5]])
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    penalties = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.1, 9.0, 0.2, 0.0]])
    found = token_rewards(torch.tensor([1.0, 0.75]), penalties, mask, steps)
    expected = [[0.4, -0.2, 0.25 + 0.25 - 0.3, 0.0], [-0.1, 0.0, -0.2, -0.5 + 1.25]]
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(reward_to_go(found)[0], torch.tensor([0.4, 0.0, 0.2, 0.0]))


def test_the_score_of_an_end_is_not_paid_to_a_response_that_did_not_end() -> None:
    steps = torch.tensor([[0.5, 0.0, 0.25], [0.5, 0.0, 0.25]])
    mask, penalties = torch.ones(2, 3, dtype=torch.bool), torch.full((2, 3), 0.1)
    scores, ended = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    found = token_rewards(scores, penalties, mask, steps, ended)
    torch.testing.assert_close(found, torch.tensor([[0.4, -0.1, 0.4], [0.4, -0.1, 0.15]]))
    whole = token_rewards(scores, penalties, mask, None, ended)
    torch.testing.assert_close(whole, torch.tensor([[-0.1, -0.1, 0.9], [-0.1, -0.1, -0.1]]))


@pytest.mark.parametrize("seed", range(5))
def test_the_rewards_of_a_row_sum_to_its_score_wherever_its_steps_fall(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    mask[:, 4] = True
    steps, scores = torch.randn(6, 9, generator=generator), torch.randn(6, generator=generator)
    none = torch.zeros(6, 9)
    found = token_rewards(scores, none, mask, steps)
    torch.testing.assert_close(found.sum(-1), scores)
    assert found[~mask].eq(0).all()
    inner = mask & ~last_token(mask)
    assert torch.equal(found[inner], steps[inner])
    placed = steps * mask
    whole = token_rewards(placed.sum(-1), none, mask, placed)
    torch.testing.assert_close(whole, placed, atol=1e-5, rtol=0)
    assert torch.equal(token_rewards(scores, none, mask, none), token_rewards(scores, none, mask))


def test_steps_and_a_bootstrap_in_gae_by_hand() -> None:
    """γ 0.9, λ 0.5, a token that was read between two that were chosen, and a value behind a truncated row."""
    rewards = torch.tensor([[0.5, 0.0, 1.0]])
    values, mask = torch.tensor([[0.2, 7.0, 0.4]]), torch.tensor([[True, False, True]])
    last = 1.0 + 0.9 * 2.0 - 0.4
    first = 0.5 + 0.9 * 0.4 - 0.2 + 0.9 * 0.5 * last
    advantages, returns = gae(rewards, values, mask, 0.9, 0.5, torch.tensor([2.0]))
    torch.testing.assert_close(advantages, torch.tensor([[first, 0.0, last]]))
    torch.testing.assert_close(returns, torch.tensor([[first + 0.2, 0.0, last + 0.4]]))


def test_explained_variance_of_a_critic() -> None:
    mask = torch.tensor([[True, True, True, False]])
    returns, values = torch.tensor([[1.0, 2.0, 6.0, 9.0]]), torch.tensor([[1.0, 3.0, 5.0, -9.0]])
    # left over: 0, -1, 1 with variance 1; of the returns: variance 7
    assert float(explained_variance(values, returns, mask)) == pytest.approx(1 - 1 / 7)


def test_advantages_of_the_fixture() -> None:
    advantages, returns = gae(fixture_rewards(), VALUES, MASK, 1.0, 0.95)
    third = 0.995 - 0.3  # nothing follows
    second = 0.025 + 0.3 - 0.2 + 0.95 * third
    first = -0.01 + 0.2 - 0.1 + 0.95 * second
    expected = torch.tensor([[first, second, third, 0.0], [-0.427371, -0.339338, -0.678250, -1.035]])
    torch.testing.assert_close(advantages, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(returns, torch.where(MASK, expected + VALUES, torch.zeros(())), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (1.0, 0.0)])
def test_gae_is_the_double_sum_of_its_definition(gamma: float, lam: float) -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 4, 6, 2])[:, None]
    final = torch.randn(5, dtype=torch.float64)
    for holes in (mask, mask & (torch.rand(5, 7) < 0.6)):
        for final_values in (None, final):
            advantages, returns = gae(rewards, values, holes, gamma, lam, final_values)
            for row, chosen in enumerate(holes):  # the tokens that were read take no step
                reward, value = rewards[row][chosen].tolist(), values[row][chosen].tolist()
                value.append(0.0 if final_values is None else float(final[row]))
                delta = [r + gamma * value[t + 1] - value[t] for t, r in enumerate(reward)]
                for t, found in enumerate(advantages[row][chosen].tolist()):
                    expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta)))
                    assert found == pytest.approx(expected)
            torch.testing.assert_close(returns, (advantages + values) * holes)
            assert not advantages[~holes].any()


def test_two_turns_by_hand() -> None:
    # the policy chose a token, read two (a user's turn), chose two, and padding follows; the score is paid once, at the end
    mask = torch.tensor([[True, False, False, True, True, False]])
    values = torch.tensor([[0.5, 9.0, 9.0, 0.2, 0.4, 9.0]])
    rewards = token_rewards(torch.tensor([1.0]), torch.full((1, 6), 0.1), mask)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.0, 0.0, -0.1, 0.9, 0.0]]))
    advantages, returns = gae(rewards, values, mask, 0.9, 0.5)
    # δ: 0.9 - 0.4 = 0.5; -0.1 + 0.9·0.4 - 0.2 = 0.06; -0.1 + 0.9·0.2 - 0.5 = -0.42; γλ = 0.45
    torch.testing.assert_close(advantages, torch.tensor([[-0.291750, 0.0, 0.0, 0.285, 0.5, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.208250, 0.0, 0.0, 0.485, 0.9, 0.0]]))
    truncated, _ = gae(rewards, values, mask, 0.9, 0.5, torch.tensor([2.0]))  # V behind the last token: δ is 1.8 more
    torch.testing.assert_close(truncated, torch.tensor([[0.072750, 0.0, 0.0, 1.095, 2.3, 0.0]]))


def test_whitening_counts_the_mask_alone() -> None:
    x = torch.tensor([[1.0, 2.0, 1e6], [4.0, 1e6, 1e6]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kept = torch.tensor([1.0, 2.0, 4.0])
    expected = (kept - kept.mean()) / kept.std()
    torch.testing.assert_close(whiten(x, mask)[mask], expected)
    assert not whiten(x, mask)[~mask].any()
    assert not whiten(torch.full((2, 3), 2.5), mask).any()  # without a variance, by which it divides
    mean, variance = masked_moments(x, mask)
    assert float(mean) == pytest.approx(float(kept.mean()))
    assert float(variance) == pytest.approx(float(kept.var()))


def test_nothing_off_the_mask_is_seen() -> None:
    x, mask = torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True])
    assert float(masked_mean(x, mask)) == 2.0
    assert row_mean(x[None], mask[None]).tolist() == [2.0]
    only = torch.tensor([True, False, False])
    assert row_mean(x[None], only[None]).tolist() == [1.0]
    assert [float(moment) for moment in masked_moments(x, only, math.nan)] == [1.0, 0.0]
    none = torch.zeros_like(mask)
    assert float(masked_mean(x, none)) == 0.0
    assert math.isnan(masked_mean(x, none, math.nan))
    assert all(map(math.isnan, masked_moments(x, none, math.nan)))
    assert [float(moment) for moment in masked_moments(x, none)] == [0.0, 0.0]
    assert math.isnan(explained_variance(x, x, none))


def test_groups() -> None:
    returns, groups = torch.tensor([1.0, 5.0, 2.0, 7.0, 9.0]), torch.tensor([4, 8, 4, 8, 6])
    everyone = torch.ones(5, dtype=torch.bool)
    assert leave_one_out(returns, groups, everyone).tolist() == [2.0, 7.0, 1.0, 5.0, 9.0]
    mean, deviation = group_moments(returns, groups, everyone)
    assert mean.tolist() == [1.5, 6.0, 1.5, 6.0, 9.0]
    expected = [0.5**0.5, 2.0**0.5, 0.5**0.5, 2.0**0.5, 0.0]
    torch.testing.assert_close(deviation, torch.tensor(expected))
    without = torch.tensor([True, True, False, True, True])
    assert leave_one_out(returns, groups, without)[0] == 1.0  # alone, so it counts for nothing


def test_rows_without_a_score_have_an_advantage_of_0_and_move_no_other() -> None:
    returns, groups = torch.tensor([1.0, 3.0, 9.0]), torch.zeros(3, dtype=torch.long)
    valid = torch.tensor([True, True, False])
    assert group_centered(returns, groups, valid).tolist() == [-1.0, 1.0, 0.0]
    for found in (group_normalized(returns, groups, valid), batch_normalized(returns, valid)):
        assert found.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0], abs=1e-4)


def test_no_response_pays_more_than_the_whole_overlong_penalty() -> None:
    assert overlong_penalty(torch.tensor([0, 90, 150]), 100, 20).tolist() == [0.0, 0.5, 1.0]


def test_equal_rewards_have_no_deviation_however_large_they_are() -> None:
    rewards = torch.full((7,), 1000.1)  # seven of which sum to something else in float32
    mean, deviation = group_moments(rewards, torch.zeros(7, dtype=torch.long), torch.ones(7, dtype=torch.bool))
    assert torch.equal(mean, rewards)
    assert not deviation.any()


def test_best_and_worst_with_ties_and_unscored_rows() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 9.0, 1.0, 0.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    valid = torch.tensor([True] * 6 + [False, True, True])
    best, worst, differ = best_and_worst(scores, groups, valid)
    assert best.tolist()[0] == 1
    assert worst.tolist()[0] == 0
    assert (best[2], worst[2]) == (7, 8)
    assert differ.tolist() == [True, False, True]
    assert (best[1], worst[1]) == (3, 5)


def test_a_row_without_a_score_is_not_the_best_of_its_group() -> None:
    scores, groups = torch.tensor([1.0, 2.0, 9.0]), torch.zeros(3, dtype=torch.long)
    assert best_of_group(scores, groups, torch.tensor([True, True, False])).tolist() == [False, True, False]


def test_a_group_without_a_best_row_has_its_first_and_its_last_as_placeholders() -> None:
    groups = torch.tensor([0, 0, 0, 1])
    best, worst, differ = best_and_worst(torch.ones(4), groups, torch.ones(4, dtype=torch.bool))
    assert (best.tolist(), worst.tolist()) == ([0, 3], [2, 3])
    assert not differ.any()


def test_the_last_token_of_each_row() -> None:
    assert last_token(MASK).nonzero().tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, -1.2), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8), (1.1, 2.0, -2.2)],
)
def test_the_clip_is_pessimistic_on_both_sides(ratio: float, advantage: float, expected: float) -> None:
    assert float(clipped_policy_loss(torch.tensor(ratio), torch.tensor(advantage), 0.2)) == pytest.approx(expected)


def test_the_upper_and_the_dual_clip() -> None:
    assert float(clipped_policy_loss(torch.tensor(1.5), torch.tensor(1.0), 0.2, 0.28)) == pytest.approx(-1.28)
    assert float(clipped_policy_loss(torch.tensor(9.0), torch.tensor(-1.0), 0.2, None, 3.0)) == pytest.approx(3.0)
    assert float(clipped_policy_loss(torch.tensor(9.0), torch.tensor(-0.5), 0.2, None, 3.0)) == pytest.approx(1.5)
    for advantage in (0.0, 0.5, 1.0):  # only negative ones are clipped twice
        found = clipped_policy_loss(torch.tensor(9.0), torch.tensor(advantage), 0.2, None, 3.0)
        assert float(found) == pytest.approx(-1.2 * advantage)


def test_the_value_loss_takes_the_worse_of_the_two() -> None:
    old, returns = torch.tensor(0.0), torch.tensor(1.0)
    assert float(clipped_value_loss(torch.tensor(0.9), old, returns, 0.2)) == pytest.approx(0.5 * 0.8**2)
    assert float(clipped_value_loss(torch.tensor(0.9), old, returns, None)) == pytest.approx(0.5 * 0.1**2)
    near = clipped_value_loss(torch.tensor(0.5), torch.tensor(0.6), torch.tensor(0.0), 0.2)  # which is not clipped
    assert float(near) == pytest.approx(0.5 * 0.5**2)


def test_preference_losses_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0]), torch.tensor([-1.0])
    lengths = torch.tensor([2]), torch.tensor([4])

    def loss(kind: str, smoothing: float = 0.0) -> float:
        return float(preference_loss(chosen, rejected, *lengths, 0.5, kind, smoothing))  # type: ignore[arg-type]

    right, wrong = math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(1.0))
    assert loss("sigmoid") == pytest.approx(right)
    assert loss("sigmoid", 0.1) == pytest.approx(0.9 * right + 0.1 * wrong)
    assert loss("ipo") == pytest.approx((2.0 - 1.0) ** 2)
    assert loss("ipo_length_normalized") == pytest.approx((0.5 + 0.25 - 1.0) ** 2)
    assert loss("hinge") == pytest.approx(0.0)
    assert loss("hinge", 0.25) == pytest.approx(0.25 * 2.0)
    assert loss("apo_zero") == pytest.approx(1 - 1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(0.5)))


def test_tokens_behind_the_shorter_response_weigh_alpha() -> None:
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    values = torch.tensor([[1.0, 9.0, 2.0, 4.0], [3.0, 5.0, 9.0, 9.0]])
    assert length_desensitized(values, mask, 0.25).tolist() == [1.0 + 2.0 + 0.25 * 4.0, 8.0]
    assert length_desensitized(values, mask, 1.0).tolist() == [7.0, 8.0]


def test_margins_of_rounding_alone_are_ties() -> None:
    assert preference_agreement(torch.tensor([1.5e-4, 0.9e-4, -0.9e-4, -1.5e-4])).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_bradley_terry_with_margin_and_centring() -> None:
    found = bradley_terry_loss(torch.tensor(2.0), torch.tensor(0.5), torch.tensor(0.5), 0.1)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-1.0)) + 0.1 * 2.5**2)


def test_a_capped_ratio_weighs_the_gradient_and_has_none() -> None:
    ratio = torch.tensor([0.5, 9.0], requires_grad=True)
    logprobs = torch.tensor([-2.0, -3.0], requires_grad=True)
    loss = capped_policy_loss(ratio, torch.tensor([0.5, -2.0]), logprobs, 5.0)
    assert loss.tolist() == [0.5, -30.0]
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert ratio.grad is None
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.25, 10.0]


def test_components_are_weighed_after_they_are_normalised() -> None:
    components = torch.tensor([[0.0, 10.0], [2.0, 30.0], [5.0, math.nan]])
    weights = torch.tensor([[2.0, 0.5]]).expand(3, 2)
    groups, valid = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool)
    first = group_normalized(components[:, 0], groups, valid)
    found = normalized_components(components, weights, groups, valid)
    second = group_normalized(components[:2, 1], groups[:2], valid[:2])
    torch.testing.assert_close(found[:2], 2 * first[:2] + 0.5 * second)
    torch.testing.assert_close(found[2], 2 * first[2])


def test_the_loss_of_labelled_responses_by_hand() -> None:
    drift, good = torch.tensor([1.0, 3.0, -1.0]), torch.tensor([True, False, True])
    found = kto_loss(drift, good, 0.5, 2.0, 3.0, 4.0)
    expected = [
        3 * (1 - 1 / (1 + math.exp(-1.0))),
        4 * (1 - 1 / (1 + math.exp(5.0))),
        3 * (1 - 1 / (1 + math.exp(3.0))),
    ]
    assert found.tolist() == pytest.approx(expected)
