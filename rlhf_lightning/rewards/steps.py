"""Rewards for the steps of a response."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.base import Reward, RewardOutput, reward_scores
from rlhf_lightning.rewards.wrapped import WrappedReward
from rlhf_lightning.types import Completions


class StepReward(WrappedReward):
    """Score every step of a response, and give each score to the last token of its step.

    The reward of a response is the sum of its steps. A response with a step that cannot be scored has no score. PPO, and
    REINFORCE with `reward_to_go`, learn from where the scores fell; other algorithms read the sum.

    Args:
        reward: returns a list of numbers per response, one for each step. A function may take `steps`, the texts of the steps
            of each response; a class reads `Completions.ends` and `Completions.steps`. In Python also a function.
        split: text that ends a step and belongs to it, such as an empty line; null for one step per turn of the assistant.
    """

    def __init__(self, reward: Reward, split: str | None = "\n\n") -> None:
        super().__init__(reward)
        self.reward.per_step, self.split = True, split

    def check(self) -> None:
        """Check the text and the reward.

        Raises:
            UserError: the text is empty, or the reward refuses its options.
        """
        if self.split == "":
            raise UserError(
                "StepReward.split is empty; set it to a text that ends a step, or to null for a step per turn"
            )
        super().check()

    def __call__(self, completions: Completions) -> RewardOutput:
        """Split the responses, and score the steps."""
        split = steps_by_turn(completions) if self.split is None else steps_by_text(completions, self.split)
        ends, texts = [[end for end, _ in row] for row in split], [[text for _, text in row] for row in split]
        scores = reward_scores(self.reward, replace(completions, ends=ends, steps=texts))
        return RewardOutput(scores.rewards, scores.components, scores.step_rewards)


Steps = list[tuple[int, str]]
"""The column of the last token of each step of a response, and its text."""


def steps_by_text(completions: Completions, split: str) -> list[Steps]:
    """Split each response after every `split`; what follows the last one is a step if it has a letter.

    A token that ends several steps ends one step with the text of all of them.
    """
    rows = []
    for row, response in enumerate(completions.texts_of(completions.mask)):
        columns = torch.nonzero(completions.mask[row]).flatten().tolist()
        texts = _after_each(response, split)
        lengths = [sum(map(len, texts[: count + 1])) for count in range(len(texts) - 1)]
        steps: dict[int, str] = {}
        ends = completions.columns_of_lengths(row, lengths) + columns[-1:]
        for end, text in zip(ends, texts if columns else [], strict=True):
            steps[end] = steps.get(end, "") + text
        rows.append(list(steps.items()))
    return rows


def _after_each(text: str, split: str) -> list[str]:
    """Split a text after each `split`.

    >>> _after_each("a. b. ", ". "), _after_each("", ". ")
    (['a. ', 'b. '], [''])
    """
    *ended, rest = text.split(split)
    texts = [each + split for each in ended]
    if rest.strip() or not texts:
        return [*texts, rest]
    return [*texts[:-1], texts[-1] + rest]


def steps_by_turn(completions: Completions) -> list[Steps]:
    """Make a step of each run of tokens that the policy chose."""
    mask = completions.mask.cpu()
    starts = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    turn = starts.cumsum(-1) * mask  # 1 on the first turn, 2 on the second
    rows: list[Steps] = [[] for _ in range(len(completions))]
    for number in range(1, int(turn.max()) + 1 if turn.numel() else 1):
        texts = completions.texts_of(turn == number)
        for row, text in enumerate(texts):
            if (columns := torch.nonzero(turn[row] == number)).numel():
                rows[row].append((int(columns[-1]), text))
    return rows
