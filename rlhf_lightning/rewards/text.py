"""Another text of the responses for a reward."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.shared_base import SharedBase
from rlhf_lightning.rewards.base import Reward, RewardOutput
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.types import Completions


class ResponseText(Reward):
    """Score another text of the responses than the one that was generated.

    Without it a reward is given responses as generated: with their white space and special tokens, without the special token
    that ended them. A reward model then scores the tokens that it was trained on, so do not wrap one in this class.

    Args:
        reward: the reward that scores the text; in Python also a function.
        skip_special_tokens: remove every special token of the policy's tokenizer.
        strip: remove white space at both ends.
        stop_token: keep the special token that ended the response.
    """

    def __init__(
        self, reward: Reward, skip_special_tokens: bool = False, strip: bool = False, stop_token: bool = False
    ) -> None:
        self.reward: Reward = as_reward(reward)
        self.skip_special_tokens, self.strip, self.stop_token = skip_special_tokens, strip, stop_token
        self.best, self.scores_while_generating = self.reward.best, self.reward.scores_while_generating
        self.per_step = self.reward.per_step

    def check(self) -> None:
        """Check the reward, and that the choices do not contradict each other.

        Raises:
            UserError: the stop token is both kept and removed.
        """
        if self.skip_special_tokens and self.stop_token:
            raise UserError(
                "ResponseText.stop_token is true and ResponseText.skip_special_tokens is true, which removes it; set one to false"
            )
        self.reward.check()

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Check the columns for the reward."""
        self.reward.check_columns(columns, where)

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the columns of the reward."""
        return self.reward.used_columns(columns)

    def share(self, base: SharedBase) -> None:
        """Let the reward use the policy's base model where it can."""
        self.reward.share(base)

    def load(self, device: torch.device) -> None:
        """Load the reward."""
        self.reward.load(device)

    def __call__(self, completions: Completions) -> Sequence[Any] | RewardOutput:
        """Score the texts."""
        texts = completions.texts(
            skip_special_tokens=self.skip_special_tokens, strip=self.strip, stop_token=self.stop_token
        )
        return self.reward(replace(completions, responses=texts))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the reward."""
        return self.reward.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the reward."""
        self.reward.load_state_dict(state)
