"""A process reward model as reward: a decoder with a classifier for tokens, which scores each step of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.loading import load_encoder, load_process_config, load_process_model
from rlhf_lightning.models.process_model import score_tokens
from rlhf_lightning.models.shared_base import SharedBase
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.types import Completions

Ids = list[int]


class ProcessReward(ModelReward):
    """Score each step of a response by the probability of a label, minus an offset; `StepReward` around it splits the steps.

    The model is an `AutoModelForTokenClassification` on a decoder, such as TRL's `PRMTrainer` saves. As that trainer does, the
    model reads the prompt, and then each step with the separator behind it; the label of a step is that of its last token. Steps
    have no white space at their ends. A classifier with one output gives its value instead of a probability.

    Args:
        name_or_path: hub name or folder.
        separator: text behind each step.
        label: number of the label that marks a good step.
        offset: subtracted from the score of each step. Scores add up, so at 0 a response gains by more steps alone; at 0.5 a step
            counts for nothing where the model is undecided.
        tokenizer: hub name or folder; by default the model's.
        dtype: type of the weights.
        batch_size: responses scored at a time.
        max_length: longest prompt and response, in tokens; longer texts lose the beginning of their prompt. A response that is
            still too long has no score.
        chat_template: a template as in `policy.chat_template`; by default the tokenizer's.
        pad_token: pad token of a tokenizer without one.
        pack: compute a prompt once for all of its responses, where that is exact.
        max_tokens_per_batch: most tokens of one forward pass, for any batch_size.
        trust_remote_code: run Python code that comes with the model.
    """

    per_step = True

    def __init__(
        self,
        name_or_path: str,
        separator: str = "\n",
        label: int = 1,
        offset: float = 0.0,
        tokenizer: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        batch_size: int = 32,
        max_length: int | None = None,
        chat_template: str | None = None,
        pad_token: str | None = None,
        pack: bool = True,
        max_tokens_per_batch: int | None = 2048,
        trust_remote_code: bool = False,
    ) -> None:
        options = (chat_template, pad_token, pack, max_tokens_per_batch, trust_remote_code)
        super().__init__(name_or_path, tokenizer, dtype, batch_size, max_length, *options)
        self.separator, self.label, self.offset = separator, label, offset

    def check(self) -> None:
        """Check that the model is a token classifier with the label, and has a tokenizer.

        Raises:
            UserError: it is another model, or an option is out of range.
        """
        name = type(self).__name__
        if self.batch_size < 1:
            raise UserError(f"{name}.batch_size is {self.batch_size}; set it to 1 or more")
        if not self.separator:
            raise UserError(
                f"{name}.separator is empty; set it to the text behind each step, as in the model's training"
            )
        labels = load_process_config(self.config).num_labels
        if not 0 <= self.label < labels and labels > 1:
            raise UserError(
                f"{name}.label is {self.label}, and {self.config.name_or_path} has {labels} labels; set it to a number from 0 "
                f"to {labels - 1}"
            )
        load_encoder(self.config)

    def share(self, base: SharedBase) -> None:
        """Share nothing: the model has a base of its own."""

    def load(self, device: torch.device) -> None:
        """Load the model and its tokenizer, once."""
        if self.loaded:
            return
        self.encoder = load_encoder(self.config)
        model = load_process_model(self.config)
        self.model, self.loaded = model.requires_grad_(False).to(device), True

    @torch.no_grad()
    def __call__(self, completions: Completions) -> Sequence[list[float] | None]:
        """Return one score per step of each response; None for a response that is too long."""
        if completions.steps is None:  # `checked_steps` says what to do
            return [None] * len(completions)
        prompts = completions.columns.get("prompt", completions.prompts)
        encoded = [self._encoded(*row) for row in zip(prompts, completions.steps, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i][0]), encoded[i][0], -len(encoded[i][1])))
        scores: list[list[float] | None] = [None] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            table = self._tokens([encoded[i] for i in chosen])
            for row, i in enumerate(chosen):
                _, ids, ends = encoded[i]
                if all(end < len(ids) for end in ends):
                    scores[i] = (table[row, [end + 1 for end in ends]] - self.offset).tolist()
        return scores

    def _encoded(self, prompt: Any, steps: list[str]) -> tuple[Ids, Ids, list[int]]:
        """Return the ids of a prompt and of its steps, and the place of the last token of each step."""
        ids: Ids = []
        ends = []
        for step in steps:
            for text in (step.strip(), self.separator):
                ids += self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
            ends.append(len(ids) - 1)
        before, kept = self.encoder.pair(self.encoder.prompt(prompt), ids, self.max_length)
        return before, kept, ends

    def _tokens(self, encoded: list[tuple[Ids, Ids, list[int]]]) -> Tensor:
        """Return float32 [B, T + 1]; the score of each step is behind its last token."""
        pad = self.encoder.tokenizer.pad_token_id
        prompts, responses = [row[0] for row in encoded], [[*row[1], pad] for row in encoded]
        rows = recorded_rows(prompts, responses, list(range(len(encoded))), self.encoder.stop_tokens, pad)
        behind = torch.zeros_like(rows.mask)
        for row, (_, ids, ends) in enumerate(encoded):
            behind[row, [end + 1 for end in ends if end < len(ids)]] = True
        device = next(self.model.parameters()).device
        return score_tokens(self.model, replace(rows, mask=behind).to(device), self.label).cpu()
