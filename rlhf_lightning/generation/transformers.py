"""Generate responses with the `generate` method of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from rlhf_lightning.generation.base import Generated, GenerationRequest, Generator, SamplingParams
from rlhf_lightning.generation.stop_strings import StopStrings, stop_strings_of
from rlhf_lightning.seeding import derive_seed


@dataclass
class TransformersGenerate(Generator):
    """Call transformers' own `generate`: slower, the reference for correctness, and without log-probabilities.

    Transformers samples all rows of a call from one random state, which is seeded from the numbers of these rows. The same rows
    therefore get the same responses again, but another split of them over ranks or chunks of `overlap` changes responses.
    """

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> Generated:
        """Implement `Generator.generate`; the global random state is restored afterwards."""
        assert request.model is not None, "transformers' generate is a method of request.model"
        prompts, params = request.prompts, request.params
        width = prompts.shape[1]
        ending = _Ending(params, stop_strings_of(params), width)
        with torch.random.fork_rng(devices=[prompts.device] if prompts.is_cuda else []):
            torch.manual_seed(derive_seed(*request.randomness.seeds()) % 2**63)
            full: Tensor = request.model.generate(  # type: ignore[operator]
                input_ids=prompts,
                attention_mask=request.prompt_mask.long(),
                max_new_tokens=params.max_new_tokens,
                num_return_sequences=params.responses_per_prompt,
                eos_token_id=params.stop_tokens,
                pad_token_id=params.pad_token,
                stopping_criteria=[ending],
                synced_gpus=False,  # sharded weights are gathered here, and a rank may have no prompt
                **_sampling_options(params),
            )
        return ending.result(full[:, width:])


def _sampling_options(params: SamplingParams) -> dict[str, Any]:
    if not params.temperature:
        return {"do_sample": False}
    options = {"do_sample": True, "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
    return options | ({"min_p": params.min_p} if params.min_p else {})


class _Ending(StoppingCriteria):  # type: ignore[misc]
    """End rows at a stop token or a stop string, and record the length of each."""

    def __init__(self, params: SamplingParams, strings: StopStrings | None, prompt_width: int) -> None:
        self.params, self.strings, self.prompt_width = params, strings, prompt_width
        self.lengths: Tensor | None = None
        """int64 [B]; tokens of a row that stopped, 0 for any other."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tell which rows have ended, bool [B]; transformers calls this after each token."""
        length = input_ids.shape[1] - self.prompt_width
        lengths = input_ids.new_zeros(len(input_ids)) if self.lengths is None else self.lengths
        stops = torch.tensor(self.params.stop_tokens, dtype=torch.long, device=input_ids.device)
        ends = torch.isin(input_ids[:, -1], stops)
        if self.strings is not None:
            for row in torch.nonzero((lengths == 0) & ~ends).flatten().tolist():
                ends[row] = self.strings.completed_by_last(input_ids[row, self.prompt_width :].tolist())
        self.lengths = torch.where((lengths == 0) & ends, length, lengths)
        return self.lengths > 0

    def result(self, generated: Tensor) -> Generated:
        """Pad the responses [B, t] to T tokens, and mask the tokens behind the end of each."""
        assert self.lengths is not None
        tokens = generated.new_full((len(generated), self.params.max_new_tokens), self.params.pad_token)
        tokens[:, : generated.shape[1]] = generated
        stopped = self.lengths > 0
        lengths = torch.where(stopped, self.lengths, generated.shape[1])
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return Generated(tokens.masked_fill(~mask, self.params.pad_token), mask, stopped, None)
