"""How the policy writes: the built-in sampler, and transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.generation.base import Generated, Generator
from rlhf_lightning.generation.sampling import sample as sample


@dataclass
class TransformersGenerate(Generator):
    """transformers' own `generate`: slower, and the reference for correctness; records no log-probabilities."""

    max_new_tokens: int = 128
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: Tensor,
        prompt_mask: Tensor,
        responses_per_prompt: int,
        stop_tokens: list[int],
        pad_token: int,
        generator: torch.Generator,
        temperature: float | None = None,
        critic: Callable[[Tensor], Tensor] | None = None,
    ) -> Generated:
        """See `Generator.generate`; `generate` reads the global random state, which is seeded from `generator` and put back."""
        sampling_temperature = self.temperature if temperature is None else temperature
        sampling = (
            {"do_sample": True, "temperature": sampling_temperature, "top_k": 0, "top_p": 1.0}
            if sampling_temperature
            else {"do_sample": False}
        )
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[prompts.device] if prompts.is_cuda else []):
            torch.manual_seed(seed)
            full: Tensor = model.generate(  # type: ignore[operator]
                input_ids=prompts,
                attention_mask=prompt_mask.long(),
                max_new_tokens=self.max_new_tokens,
                num_return_sequences=responses_per_prompt,
                eos_token_id=stop_tokens,
                pad_token_id=pad_token,
                synced_gpus=False,  # weights that are cut are whole here, and a rank may have nothing to write
                **sampling,
            )
        return _trimmed(full[:, prompts.shape[1] :], self.max_new_tokens, stop_tokens, pad_token)


def _trimmed(generated: Tensor, width: int, stop_tokens: list[int], pad_token: int) -> Generated:
    tokens = generated.new_full((len(generated), width), pad_token)
    tokens[:, : generated.shape[1]] = generated
    stopped = torch.isin(tokens, torch.tensor(stop_tokens, device=tokens.device))
    mask = stopped.long().cumsum(-1) - stopped.long() == 0
    mask[:, generated.shape[1] :] = False
    return Generated(tokens.masked_fill(~mask, pad_token), mask, None)
