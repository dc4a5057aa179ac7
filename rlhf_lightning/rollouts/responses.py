"""From prompts to completions of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.encoding import Encoder, left_padded
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.decoding import ResponseDecoder
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Completions, RawRows, Rows


@dataclass
class ResponseGenerator:
    """Encodes prompts, generates responses with the policy, and decodes them."""

    policy: Policy
    generation: Generator
    encoder: Encoder
    truncate: bool = True
    """False samples from the full distribution, whatever top-p, top-k or min-p `generation` has."""

    def generate(
        self,
        rows: RawRows,
        responses_per_prompt: int,
        randomness: Randomness,
        temperature: float | None = None,
    ) -> Completions:
        """Generate `responses_per_prompt` completions per row; those of a row are adjacent.

        Args:
            rows: N rows with a prompt.
            responses_per_prompt: completions per row.
            randomness: random numbers of the rows, whose numbers become `groups`.
            temperature: sampling temperature; None: that of `generation`.

        Raises:
            UserError: a prompt leaves no room for a response.
        """
        device, encoder = self.policy.device, self.encoder
        prompts = [encoder.prompt(row["prompt"]) for row in rows]
        encoder.check_lengths(
            rows, [len(ids) for ids in prompts], self.generation.max_new_tokens, "a batch of the data"
        )
        tokens, prompt_mask = left_padded(prompts, self._pad, device)
        params = self.generation.sampling_params(
            encoder.stop_tokens, self._pad, responses_per_prompt, temperature, self.truncate, encoder.tokenizer.decode
        )
        repeated = randomness.repeated(responses_per_prompt)
        request = self.policy.request(prompts=tokens, prompt_mask=prompt_mask, params=params, randomness=repeated)
        generated = self.generation.generate(request)
        index = torch.arange(len(rows), device=device).repeat_interleave(responses_per_prompt)
        generated_rows = Rows(
            tokens=torch.cat([tokens[index], generated.tokens], 1),
            prompt_mask=prompt_mask[index],
            mask=generated.mask,
            groups=torch.tensor(randomness.rows, device=device)[index],
            truncated=~generated.stopped,
        )
        decoder = ResponseDecoder(encoder.tokenizer, encoder.stop_tokens, params.stop_strings)
        tensors: dict[str, Any] = generated_rows.tensors()
        return Completions(
            **tensors,
            prompts=encoder.decode(tokens[index], prompt_mask[index], special=True),
            responses=decoder(generated_rows),
            columns=columns_of([rows[i] for i in index.tolist()]),
            logprobs=generated.logprobs,
            values=generated.values,
            decoder=decoder,
        )

    @property
    def _pad(self) -> int:
        return int(self.encoder.tokenizer.pad_token_id)


def columns_of(rows: RawRows) -> dict[str, list[Any]]:
    """Turn rows into columns; a value that a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
