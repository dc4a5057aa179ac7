"""A reward model as reward: this library's export, or any decoder with a head for one score, with its own tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.console import print_first_time
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.loading import (
    ModelConfig,
    load_encoder,
    load_reward_config,
    load_reward_model,
    resolve_path,
)
from rlhf_lightning.models.paths import is_adapter
from rlhf_lightning.models.reward_model import normalize_scores, score_rows
from rlhf_lightning.models.shared_base import SharedBase, add_classifier, shares_base_with, why_not_shareable
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions


class ModelReward(Reward):
    """Score responses with a reward model, normalised as the model was saved.

    The model's own tokenizer encodes prompt and response again: a prompt of messages through its chat template, a plain prompt
    as it is. A truncated response gets no stop token.

    Args:
        name_or_path: hub name, folder, or playground/reward.
        tokenizer: hub name or folder; by default the model's.
        dtype: type of the weights; by default that of the policy's base where they share it, else float32.
        batch_size: responses scored at a time.
        max_length: longest prompt and response, in tokens; longer texts lose the beginning of their prompt.
        chat_template: a template as in `policy.chat_template`; by default the tokenizer's.
        pad_token: pad token of a tokenizer without one.
        pack: compute a prompt once for all of its responses, where that is exact.
        max_tokens_per_batch: most tokens of one forward pass, for any batch_size.
        trust_remote_code: run Python code that comes with the model.
    """

    def __init__(
        self,
        name_or_path: str,
        tokenizer: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        chat_template: str | None = None,
        pad_token: str | None = None,
        pack: bool = True,
        max_tokens_per_batch: int | None = 2048,
        trust_remote_code: bool = False,
    ) -> None:
        self.config = ModelConfig(
            name_or_path=name_or_path,
            tokenizer=tokenizer,
            dtype=dtype or "float32",
            chat_template=chat_template,
            pad_token=pad_token,
            pack=pack,
            max_tokens_per_batch=max_tokens_per_batch,
            trust_remote_code=trust_remote_code,
        )
        self.dtype, self.batch_size, self.max_length = dtype, batch_size, max_length
        self.model: Any = None
        self.loaded = False

    def check(self) -> None:
        """Check that the model is a decoder with a head for one score, and has a tokenizer.

        Raises:
            UserError: the model is a language model, which has no such head; `load_reward_config` refuses it; or batch_size is
                below 1.
        """
        if self.batch_size < 1:
            raise UserError(f"ModelReward.batch_size is {self.batch_size}; set it to 1 or more")
        model_config = load_reward_config(self.config)
        architectures = model_config.architectures or []
        full_model = not is_adapter(resolve_path(self.config.name_or_path or ""))
        if full_model and any("CausalLM" in name or "LMHead" in name for name in architectures):
            raise UserError(
                f"ModelReward.name_or_path is {self.config.name_or_path}, a language model ({architectures[0]}) without a head "
                "for scores: train a reward model on it with reward.yaml, and set name_or_path to its export"
            )
        load_encoder(self.config, model_config=model_config)

    def share(self, base: SharedBase) -> None:
        """Become a frozen adapter with a head on the policy's base, if this model was trained on that base; print which."""
        if not shares_base_with(base, self.config):
            return
        name, reason = self.config.name_or_path, why_not_shareable(self.config)
        if self.dtype not in (None, base.config.dtype):
            reason = f"its dtype is {self.dtype}, and the base's is {base.config.dtype}"
        if reason:
            print_first_time(f"the reward model {name} is loaded with its own base: {reason}")
            return
        self.model = add_classifier(base, self.config)
        quantised = f", quantised to {base.config.quantization}" if base.config.quantization else ""
        print_first_time(
            f"the reward model {name} shares the policy's base{quantised} (set model.share_base to false to load another)"
        )

    def load(self, device: torch.device) -> None:
        """Load the model and its tokenizer, once."""
        if self.loaded:
            return
        self.encoder = load_encoder(self.config)
        model = self.model or load_reward_model(self.config)
        self.model, self.loaded = model.requires_grad_(False).to(device), True

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """A reward model reads the prompt alone."""
        return [name for name in ("prompt",) if name in columns]

    @torch.no_grad()
    def __call__(self, completions: Completions) -> Sequence[Any]:
        """Return one score per completion."""
        texts = completions.columns.get("prompt", completions.prompts)
        truncated = completions.truncated.tolist()
        encoded = [self._encode(*row) for row in zip(texts, completions.responses, truncated, strict=True)]
        # longest prompts first; the responses to a prompt are adjacent, so that packing computes it once
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i][0]), encoded[i][0], -len(encoded[i][1])))
        scores = torch.zeros(len(encoded))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            scores[chosen] = self._score([encoded[i] for i in chosen])
        return scores.tolist()

    def _encode(self, prompt: Any, response: str, truncated: bool) -> tuple[list[int], list[int]]:
        tokens = self.encoder.generated(prompt, response)
        return self.encoder.pair(self.encoder.prompt(prompt), tokens[:-1] if truncated else tokens, self.max_length)

    def _score(self, encoded: list[tuple[list[int], list[int]]]) -> Tensor:
        prompts, responses = ([pair[side] for pair in encoded] for side in (0, 1))
        pad, groups = self.encoder.tokenizer.pad_token_id, list(range(len(encoded)))
        rows = recorded_rows(prompts, responses, groups, self.encoder.stop_tokens, pad)
        device = next(self.model.parameters()).device
        return normalize_scores(self.model, score_rows(self.model, rows.to(device))).cpu()
