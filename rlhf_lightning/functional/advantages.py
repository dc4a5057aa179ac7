"""Compute advantages: from one score per response to one number per token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_lightning.functional.masked import masked_moments, row_sum


def last_token(mask: Tensor) -> Tensor:
    """Mark the last True of each row of `mask` [B, T], whatever holes are before it; bool [B, T].

    >>> last_token(torch.tensor([[True, False, True, False], [False, False, False, False]]))
    tensor([[False, False,  True, False],
            [False, False, False, False]])
    """
    chosen_from_here = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (chosen_from_here == 1)


def token_rewards(
    scores: Tensor, penalties: Tensor, mask: Tensor, steps: Tensor | None = None, ended: Tensor | None = None
) -> Tensor:
    """Give every token its step reward minus its penalty, and the last token the rest of the score too; float32 [B, T].

    The rewards of a row that ended sum to its score minus its penalties, whatever its steps are.

    Args:
        scores: float32 [B]; the whole reward of a response.
        penalties: float32 [B, T].
        mask: bool [B, T]; True where the policy chose the token.
        steps: float32 [B, T]; the part of a score that was given after each token. None: nothing.
        ended: bool [B]; False where the last token does not get the rest of the score, because its response was truncated and the
            critic's value of what would follow takes its place (`gae`). None: every response ended.

    Source: Ziegler et al. 2019, eq. 2. The position is the paper's; TRL puts the score one token later (its issue 3750).

    >>> steps = torch.tensor([[0.5, 0.0, 0.25]])
    >>> token_rewards(torch.tensor([1.0]), torch.zeros(1, 3), steps >= 0, steps)
    tensor([[0.5000, 0.0000, 0.5000]])
    """
    rest = scores if steps is None else scores - row_sum(steps, mask)
    rest = rest if ended is None else rest * ended
    rewards = torch.where(last_token(mask), rest[:, None] - penalties, -penalties)
    rewards = rewards if steps is None else rewards + steps
    return torch.where(mask, rewards, rewards.new_zeros(()))


def reward_to_go(rewards: Tensor) -> Tensor:
    """Sum the rewards [B, T] from each token to the end; float32 [B, T].

    >>> reward_to_go(torch.tensor([[1.0, 0.0, 2.0]]))
    tensor([[3., 2., 2.]])
    """
    return rewards.flip(-1).cumsum(-1).flip(-1)


def discounted_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Sum γ^k times the reward of the k-th next token that the policy chose, from each token to the end; float32 [B, T].

    Args:
        rewards: float32 [B, T].
        mask: bool [B, T]; tokens off the mask have no reward, take no step of the discount, and get 0.
        gamma: γ; 0 for the rewards themselves, 1 for their sums.

    >>> discounted_to_go(torch.tensor([[1.0, 9.0, 2.0]]), torch.tensor([[True, False, True]]), 0.5)
    tensor([[2., 0., 2.]])
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float,
    final_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimate generalised advantages (Schulman et al. 2016, eq. 16) and the returns `A + V`.

    δ_t = r_t + γ V_{t+1} - V_t;  A_t = δ_t + γλ A_{t+1}. t + 1 is the next token that the policy chose. Tokens that it
    read between two choices, such as a user's turn, take no step: they neither discount nor reset the advantage.

    Args:
        rewards: float32 [B, T].
        values: float32 [B, T].
        mask: bool [B, T]; True where the policy chose the token.
        gamma: the discount.
        gae_lambda: λ; 1 for returns minus values, 0 for one-step differences.
        final_values: float32 [B]; V of the state after the last token of a truncated response (Pardo et al. 2018), 0 elsewhere.
            None: 0.

    Returns:
        Advantages and returns, float32 [B, T], 0 outside the mask.

    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[True, True]]), 1.0, 1.0)
    (tensor([[0.5000, 0.7500]]), tensor([[1., 1.]]))
    """
    advantages, zero = torch.zeros_like(values), values.new_zeros(())
    following = values.new_zeros(values.shape[0])
    next_value = following if final_values is None else final_values
    for t in range(values.shape[1] - 1, -1, -1):
        chosen = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(chosen, delta + gamma * gae_lambda * following, following)
        next_value = torch.where(chosen, values[:, t], next_value)
        advantages[:, t] = torch.where(chosen, following, zero)
    return advantages, torch.where(mask, advantages + values, zero)


def group_sums(x: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum `x` over the valid rows of each row's group, and count them; [B] each."""
    _, member = torch.unique(groups, return_inverse=True)
    kept = torch.where(valid, x, x.new_zeros(()))
    sums = torch.zeros_like(x).index_add_(0, member, kept)
    counts = torch.zeros_like(x).index_add_(0, member, valid.to(x.dtype))
    return sums[member], counts[member]


def leave_one_out(returns: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Average the returns of the other responses of the same prompt (RLOO: Ahmadian et al. 2024, eq. 8); [B].

    A row that is alone in its group gets its own return, so its advantage is 0.

    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 0]), torch.tensor([True, True, True]))
    tensor([4.0000, 3.5000, 1.5000])
    """
    sums, counts = group_sums(returns, groups, valid)
    return torch.where(counts > 1, (sums - returns) / (counts - 1).clamp(min=1), returns)


def group_moments(x: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and unbiased standard deviation of each row's group, [B] each; the deviation of a single row is 0."""
    wide = x.double()  # in float32, rounding gives equal numbers a deviation, by which GRPO divides
    sums, counts = group_sums(wide, groups, valid)
    mean = sums / counts.clamp(min=1)
    squares, _ = group_sums((wide - mean).square(), groups, valid)
    return mean.to(x.dtype), torch.sqrt(squares / (counts - 1).clamp(min=1)).to(x.dtype)


def group_centered(returns: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Subtract the mean of each row's group; [B], 0 for rows that are not valid (Liu et al. 2025, Dr. GRPO)."""
    return (returns - group_moments(returns, groups, valid)[0]) * valid


def group_normalized(returns: Tensor, groups: Tensor, valid: Tensor, eps: float = 1e-4) -> Tensor:
    """Compute (R - mean) / (std + eps) of each row's group (Shao et al. 2024, DeepSeekMath); [B], 0 for rows that are not valid.

    >>> group_normalized(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), torch.tensor([True, True, True]))
    tensor([-0.7071,  0.7071,  0.0000])
    """
    mean, deviation = group_moments(returns, groups, valid)
    return (returns - mean) / (deviation + eps) * valid


def batch_normalized(x: Tensor, valid: Tensor, eps: float = 1e-4) -> Tensor:
    """Compute (x - mean) / (std + eps) over the valid rows of all ranks; [B], 0 for rows that are not valid.

    >>> batch_normalized(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor([-0.7071,  0.7071,  0.0000])
    """
    mean, variance = masked_moments(x, valid)
    return torch.where(valid, (x - mean) / (variance.sqrt() + eps), x.new_zeros(()))


def normalized_components(components: Tensor, weights: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Normalise each score in its group, then weigh and sum them (Liu et al. 2026, GDPO); [B].

    Args:
        components: float32 [B, K]; NaN counts as a score that is not there, and adds 0.
        weights: float32 [B, K].
        groups: int64 [B].
        valid: bool [B].
    """
    scores = components.nan_to_num(0.0).T
    columns = [
        group_normalized(score, groups, valid & there)
        for score, there in zip(scores, ~components.isnan().T, strict=True)
    ]
    return (weights * torch.stack(columns, 1)).sum(-1)


def rewards_differ(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Mark the valid rows of groups whose rewards are not all equal; bool [B].

    >>> rewards_differ(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool))
    tensor([False, False,  True,  True])
    """
    return (group_moments(rewards, groups, valid)[1] > 0) & valid


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """Grow from 0 to 1 over the last `buffer` of `max_length` tokens; [B] (Yu et al. 2025, DAPO, section 3.4).

    Args:
        lengths: int64 [B]; tokens of each response.
        max_length: the length at which the penalty is 1.
        buffer: tokens over which it grows.

    >>> overlong_penalty(torch.tensor([80, 85, 100]), 100, 20)
    tensor([0.0000, 0.2500, 1.0000])
    """
    return ((lengths - (max_length - buffer)) / buffer).clamp(0, 1)


def best_of_group(scores: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Mark the valid rows with the highest score of their group, where the scores of a group differ; bool [B].

    >>> best_of_group(torch.tensor([1.0, 2.0, 2.0, 3.0, 3.0]), torch.tensor([0, 0, 0, 1, 1]), torch.ones(5, dtype=torch.bool))
    tensor([False,  True,  True, False, False])
    """
    member = torch.unique(groups, return_inverse=True)[1]
    highest = torch.full_like(scores, -math.inf).scatter_reduce(
        0, member, scores.masked_fill(~valid, -math.inf), "amax"
    )
    return (scores == highest[member]) & rewards_differ(scores, groups, valid)


def best_and_worst(scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the rows with the highest and the lowest score of every group.

    Returns:
        best: int64 [G].
        worst: int64 [G].
        differ: bool [G]; False where the group is tied or has fewer than two valid rows.
    """
    device, best, worst, differ = scores.device, [], [], []
    scores, groups, valid = scores.cpu(), groups.cpu(), valid.cpu()  # one wait for the device, not several per group
    for group in torch.unique(groups):
        members = torch.nonzero(groups == group).flatten()
        usable = members[valid[members]]
        chosen = usable if len(usable) > 1 else members
        high, low = chosen[scores[chosen].argmax()], chosen[scores[chosen].argmin()]
        real = bool(len(usable) > 1 and scores[high] > scores[low])
        if not real:  # placeholders, so that every rank keeps its number of rows
            high, low = members[0], members[-1]
        best.append(high)
        worst.append(low)
        differ.append(real)
    return torch.stack(best).to(device), torch.stack(worst).to(device), torch.tensor(differ, device=device)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Compute 1 - Var(returns - values) / Var(returns) over the masked tokens of all ranks; 1 is a perfect critic.

    NaN without a token.

    >>> import torch
    >>> float(explained_variance(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)))
    1.0
    """
    residual, total = (masked_moments(x, mask, math.nan)[1] for x in (returns - values, returns))
    return 1 - residual / total.clamp(min=1e-12)
