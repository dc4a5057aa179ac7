"""Another text of the responses for a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.base import Reward, RewardOutput
from rlhf_lightning.rewards.wrapped import WrappedReward
from rlhf_lightning.types import Completions


class ResponseText(WrappedReward):
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
        super().__init__(reward)
        self.skip_special_tokens, self.strip, self.stop_token = skip_special_tokens, strip, stop_token
        self.best, self.per_step = self.reward.best, self.reward.per_step

    def check(self) -> None:
        """Check the reward, and that the choices do not contradict each other.

        Raises:
            UserError: the stop token is both kept and removed.
        """
        if self.skip_special_tokens and self.stop_token:
            raise UserError(
                "ResponseText.stop_token is true and ResponseText.skip_special_tokens is true, which removes it; set one to false"
            )
        super().check()

    def __call__(self, completions: Completions) -> Sequence[Any] | RewardOutput:
        """Score the texts."""
        texts = completions.texts(
            skip_special_tokens=self.skip_special_tokens, strip=self.strip, stop_token=self.stop_token
        )
        return self.reward(replace(completions, responses=texts))
