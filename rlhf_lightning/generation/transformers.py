"""Generate responses with the `generate` method of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.generation.base import Generated, Generator, SamplingParams


@dataclass
class TransformersGenerate(Generator):
    """Call transformers' own `generate`: slower, the reference for correctness, and without log-probabilities."""

    max_new_tokens: int = 128
    """Maximum length of a response, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: Tensor,
        prompt_mask: Tensor,
        params: SamplingParams,
        generator: torch.Generator,
        critic: Callable[[Tensor], Tensor] | None = None,
    ) -> Generated:
        """Implement `Generator.generate`; the global random state is seeded from `generator`, then restored."""
        sampling = (
            {"do_sample": True, "temperature": params.temperature, "top_k": 0, "top_p": 1.0}
            if params.temperature
            else {"do_sample": False}
        )
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[prompts.device] if prompts.is_cuda else []):
            torch.manual_seed(seed)
            full: Tensor = model.generate(  # type: ignore[operator]
                input_ids=prompts,
                attention_mask=prompt_mask.long(),
                max_new_tokens=params.max_new_tokens,
                num_return_sequences=params.responses_per_prompt,
                eos_token_id=params.stop_tokens,
                pad_token_id=params.pad_token,
                synced_gpus=False,  # sharded weights are gathered here, and a rank may have no prompt
                **sampling,
            )
        return _trimmed(full[:, prompts.shape[1] :], params)


def _trimmed(generated: Tensor, params: SamplingParams) -> Generated:
    """Pad the responses [B, t] to T tokens, and mask the tokens after the first stop token."""
    tokens = generated.new_full((len(generated), params.max_new_tokens), params.pad_token)
    tokens[:, : generated.shape[1]] = generated
    stopped = torch.isin(tokens, torch.tensor(params.stop_tokens, device=tokens.device))
    mask = stopped.long().cumsum(-1) - stopped.long() == 0
    mask[:, generated.shape[1] :] = False
    return Generated(tokens.masked_fill(~mask, params.pad_token), mask, None)
