"""Define the contract of a generator."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Generated, GenerationRequest, SamplingParams

__all__ = ["Generated", "GenerationRequest", "Generator", "SamplingParams"]


@dataclass
class Generator(ABC):
    """Sample responses from a language model; the fields are the options of every engine, and a subclass adds its own.

    Log-probabilities that an engine records are of the full distribution at the temperature, whatever `top_p`, `top_k` and
    `min_p` exclude. A ratio of log-probabilities under other weights is then defined for every token.
    """

    separate_engine: ClassVar[bool] = False
    """True: the engine has weights or numerics of its own, such as a server. Its log-probabilities are kept beside those of the
    model that trains, and `model.correction` accounts for the difference."""
    max_new_tokens: int = 128
    """Maximum length of a response, in tokens."""
    temperature: float = 1.0
    """Divides the logits, here and in every log-probability; 0 is greedy (for `predict`, not for training)."""
    _: KW_ONLY
    stop_strings: list[str] = field(default_factory=list)
    """A response also ends with the token after which its text contains one of these. The tokens up to that one belong to the
    response, and are learned from; its text, which rewards and files get, ends before the string. It is not `truncated`."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have at least this probability; 1 keeps all. See `truncate_rollouts`."""
    top_k: int = 0
    """Sample from this number of most likely tokens; 0 keeps all. See `truncate_rollouts`."""
    min_p: float = 0.0
    """Sample from tokens with at least this fraction of the largest probability; 0 keeps all. See `truncate_rollouts`."""
    truncate_rollouts: bool | None = None
    """Whether top_p, top_k and min_p also hold for rollouts, whose gradient they bias. None refuses to train with them;
    False applies them to validation and `predict` alone; True applies them everywhere."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: a field is out of its range.
        """
        if self.max_new_tokens < 1:
            raise UserError(
                f"generation.max_new_tokens is {self.max_new_tokens}; a response needs a token: set it to at least 1"
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"generation.temperature is {self.temperature}; it divides the logits: set it to a positive number, or to 0 "
                "for greedy decoding"
            )
        self._check_truncation()
        self._check_stop_strings()

    def _check_truncation(self) -> None:
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"generation.top_p is {self.top_p}; it is a probability: set it above 0 and to at most 1, which keeps all tokens"
            )
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise UserError(
                f"generation.top_k is {self.top_k}; it is a number of tokens: set it to 1 or more, or to 0 to keep all tokens"
            )
        if not 0 <= self.min_p <= 1:
            raise UserError(
                f"generation.min_p is {self.min_p}; it is a fraction of the largest probability: set it between 0, which keeps "
                "all tokens, and 1"
            )
        if self.temperature == 0 and self.truncated_by:
            raise UserError(
                f"generation.temperature is 0 (greedy), at which {self.truncated_by} excludes nothing: set it above 0, or remove "
                f"{self.truncated_by.split()[0]}"
            )
        if self.truncate_rollouts is not None and not self.truncated_by:
            raise UserError(
                f"generation.truncate_rollouts is {self.truncate_rollouts}, and nothing truncates the sampling: set "
                "generation.top_p, top_k or min_p, or remove truncate_rollouts"
            )

    def _check_stop_strings(self) -> None:
        strings = self.stop_strings
        if not isinstance(strings, list | tuple) or not all(isinstance(each, str) and each for each in strings):
            raise UserError(
                f"generation.stop_strings is {strings!r}; it is a list of texts, none of them empty: set it for example to "
                "['\\n\\n']"
            )

    @property
    def truncated_by(self) -> str:
        """Name the options that exclude tokens from sampling, such as `top_p 0.9`; empty if there are none."""
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
        return ", ".join(f"{name} {getattr(self, name)}" for name, off in neutral.items() if getattr(self, name) != off)

    def check_rollouts(self) -> None:
        """Refuse to train on truncated sampling, unless `truncate_rollouts` says what is wanted.

        Raises:
            UserError: an option truncates the sampling, and `truncate_rollouts` is None.
        """
        if self.truncated_by and self.truncate_rollouts is None:
            raise UserError(
                f"generation has {self.truncated_by}; rollouts of a truncated distribution bias the gradient: set "
                "generation.truncate_rollouts to false (validation and predict alone use it), or to true (rollouts too)"
            )

    def sampling_params(
        self,
        stop_tokens: list[int],
        pad_token: int,
        responses_per_prompt: int = 1,
        temperature: float | None = None,
        truncate: bool = True,
        decode: Callable[[list[int]], str] | None = None,
    ) -> SamplingParams:
        """Combine the fields with what the tokenizer knows.

        Args:
            stop_tokens: ids that end a response.
            pad_token: fills the columns behind a response.
            responses_per_prompt: responses to each prompt.
            temperature: replaces the field.
            truncate: False ignores `top_p`, `top_k` and `min_p`.
            decode: token ids → text, special tokens included; needed for `stop_strings`.
        """
        chosen = self.temperature if temperature is None else temperature
        kept = (self.top_p, self.top_k, self.min_p) if truncate else (1.0, 0, 0.0)
        return SamplingParams(
            self.max_new_tokens,
            chosen,
            stop_tokens,
            pad_token,
            responses_per_prompt,
            *kept,
            tuple(self.stop_strings),
            decode,
        )

    @abstractmethod
    def generate(self, request: GenerationRequest) -> Generated:
        """Generate `request.params.responses_per_prompt` responses to each prompt; no gradient is kept."""
