"""A reward model as reward: ours, or any decoder with a head for one score, with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.console import print_first_time
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.models.loading import (
    ModelConfig,
    load_model_config,
    load_reward_config,
    load_reward_model,
    load_tokenizer,
    resolve_path,
    stop_token_ids,
)
from rlhf_lightning.models.paths import is_adapter
from rlhf_lightning.models.reward_model import normalize_scores, score_rows
from rlhf_lightning.models.shared_base import SharedBase, add_classifier, shares_base_with, why_not_shareable
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions


class ModelReward(Reward):
    """The score of a reward model, with the normalisation that was saved with it.

    Prompt and response are tokenized again by the model's own tokenizer: a prompt of messages through its chat template, a
    plain one as it is. A response that was cut off has no stop token at its end here either.

    Args:
        name_or_path: hub name, folder, or playground/reward.
        tokenizer: hub name or folder; by default the model's.
        dtype: of the weights; by default that of the policy's base where the two share it, else float32.
        batch_size: responses scored at a time.
        max_length: tokens; longer texts lose the beginning of their prompt.
        chat_template: as of a policy; by default the tokenizer's.
        pad_token: for a tokenizer without one.
        pack: compute a prompt once for all of its responses, where that is exact.
        max_tokens_per_batch: of one pass, whatever batch_size says.
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
        """The folder is there, and that of a decoder with a head for one score, with a tokenizer.

        Raises:
            UserError: it is a language model, whose head would be a random one, or what `load_reward_config` refuses; or no
                response would be scored at a time.
        """
        if self.batch_size < 1:
            raise UserError(f"ModelReward.batch_size is {self.batch_size}; it must be at least 1")
        found = load_reward_config(self.config)
        kinds = found.architectures or []
        of_its_own = not is_adapter(resolve_path(self.config.name_or_path or ""))
        if of_its_own and any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
            raise UserError(
                f"{self.config.name_or_path} is a language model ({kinds[0]}) and has no head that gives scores; train one on "
                "it with reward.yaml and give its export"
            )
        self._encoder(found)

    def share(self, base: SharedBase) -> None:
        """Be a frozen adapter with a head on the policy's base, where that is what this model was trained on; says so."""
        if not shares_base_with(base, self.config):
            return
        name, why_not = self.config.name_or_path, why_not_shareable(self.config)
        if self.dtype not in (None, base.config.dtype):
            why_not = f"its dtype is {self.dtype}, the base's {base.config.dtype}"
        if why_not:
            print_first_time(f"the reward model {name} is loaded with a base of its own: {why_not}")
            return
        self.model = add_classifier(base, self.config)
        quantised = f", quantised to {base.config.quantization}" if base.config.quantization else ""
        print_first_time(
            f"the reward model {name} shares the policy's base{quantised} (model.share_base: false loads another)"
        )

    def load(self, device: torch.device) -> None:
        """Load model and tokenizer."""
        if self.loaded:
            return
        self.encoder = self._encoder(load_model_config(self.config))
        model = self.model or load_reward_model(self.config)
        self.model, self.loaded = model.requires_grad_(False).to(device), True

    def _encoder(self, model_config: Any) -> Encoder:
        tokenizer = load_tokenizer(self.config)
        context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
        return Encoder(tokenizer, stop_token_ids(tokenizer, model_config, self.config), context)

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """A reward model reads the prompt alone."""
        return [name for name in ("prompt",) if name in columns]

    @torch.no_grad()
    def __call__(self, completions: Completions) -> Sequence[float]:
        """One score a completion."""
        texts = completions.columns.get("prompt", completions.prompts)
        cut = completions.truncated.tolist()
        encoded = [self._encode(*row) for row in zip(texts, completions.responses, cut, strict=True)]
        # the longest prompts first, the responses to one side by side, so that they share it
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i][0]), encoded[i][0], -len(encoded[i][1])))
        scores = torch.zeros(len(encoded))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            scores[chosen] = self._score([encoded[i] for i in chosen])
        return scores.tolist()

    def _encode(self, prompt: Any, response: str, cut: bool) -> tuple[list[int], list[int]]:
        answer = self.encoder.generated(prompt, response)
        return self.encoder.pair(self.encoder.prompt(prompt), answer[:-1] if cut else answer, self.max_length)

    def _score(self, encoded: list[tuple[list[int], list[int]]]) -> Tensor:
        prompts, responses = ([pair[side] for pair in encoded] for side in (0, 1))
        pad, groups = self.encoder.tokenizer.pad_token_id, list(range(len(encoded)))
        rows = recorded_rows(prompts, responses, groups, self.encoder.stop_tokens, pad)
        device = next(self.model.parameters()).device
        return normalize_scores(self.model, score_rows(self.model, rows.to(device))).cpu()
