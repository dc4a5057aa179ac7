"""Compute log-probabilities of responses: the only function that does, and the head it uses."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import backbone_of, capabilities_of, eval_mode, language_model
from rlhf_lightning.models.half_precision import compute_dtype
from rlhf_lightning.models.packed_forward import hidden_states_before, map_micro_batches
from rlhf_lightning.types import Rows

CHUNK_ELEMENTS = 2**23
"""Logits per chunk: tokens times vocabulary (32 MiB in float32); twice as many on CUDA."""


class TokenScores(NamedTuple):
    """Hold the numbers of one pass over response tokens; float32 [B, T] each, 0 outside the mask."""

    logprobs: Tensor
    entropy: Tensor | None
    hidden: Tensor
    """[N, H]; the last hidden state before each of the N tokens under the mask, which a critic on the same backbone reads."""


def token_scores(model: nn.Module, rows: Rows, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
    """Compute log-probabilities of the response tokens of `rows` under `model`, at `temperature`, in float32.

    Only tokens under the mask go through the head. The head runs in chunks and is recomputed in the backward pass, so
    logits [B, T, V] are never allocated.
    """
    lm = language_model(model)
    hidden = hidden_states_before(backbone_of(lm), rows)
    targets = rows.tokens[:, rows.prompt_mask.shape[1] :][rows.mask]
    logprobs, entropies = Head(lm, temperature, entropy)(hidden, targets)
    empty = torch.zeros(rows.mask.shape, dtype=torch.float32, device=hidden.device)
    entropy_rows = None if entropies is None else empty.masked_scatter(rows.mask, entropies)
    return TokenScores(empty.masked_scatter(rows.mask, logprobs), entropy_rows, hidden)


def response_logprobs(
    model: nn.Module, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Compute `token_scores` of tensors that are no rollout yet, in micro-batches; float32 [B, T]."""
    zeros = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    rows = Rows(tokens, prompt_mask, mask, zeros, zeros.bool())
    results = map_micro_batches(backbone_of(model), rows, lambda batch: token_scores(model, batch, temperature)[:1])
    return cast(Tensor, results[0])


class Head:
    """Map hidden states of N tokens to log-probabilities and entropies, in chunks."""

    def __init__(self, lm: Any, temperature: float, entropy: bool) -> None:
        self.project, self.config = lm.get_output_embeddings(), lm.config.get_text_config()
        self.temperature, self.entropy = temperature, entropy

    def __call__(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities [N] and entropies [N] (or None) of `targets` [N], given `hidden` [N, H]."""
        size = max(1, CHUNK_ELEMENTS * (1 + hidden.is_cuda) // self.config.vocab_size)
        if len(hidden) <= size:
            logprobs, entropies = self._chunk(hidden, targets)
            return logprobs, entropies if self.entropy else None
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        results = [checkpoint(self._chunk, *chunk, use_reentrant=False) for chunk in chunks]
        logprobs = torch.cat([result[0] for result in results])
        return logprobs, torch.cat([result[1] for result in results]) if self.entropy else None

    def _chunk(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(hidden)
        logits = logits if self.temperature == 1 else logits / self.temperature
        if compute_dtype(hidden).itemsize == 2:  # rounded logits: log_softmax, the faster way, is exact enough
            every = logits.log_softmax(-1)
            logprobs = every.gather(-1, targets[:, None]).squeeze(-1)
            return logprobs, -(every.exp() * every).sum(-1) if self.entropy else logprobs
        normalizer = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
        if not self.entropy:
            return logprobs, logprobs
        return logprobs, normalizer - (logits.softmax(-1) * logits).sum(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the head's output, float32 [N, V], capped (Gemma) and scaled as the architecture does."""
        logits = self.project(hidden.to(self.project.weight.dtype)).float()  # Mamba's states are float32 in any model
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        scale = logit_scale(self.config)
        return logits if scale == 1 else logits * scale


def logit_scale(config: Any) -> float:
    """Return the factor of the head's output: Cohere, Falcon H1, Granite (which divides), HyperCLOVA X."""
    factors = {
        name: getattr(config, name, None) or 1.0 for name in ("logit_scale", "lm_head_multiplier", "logits_scaling")
    }
    multiplies = config.model_type.startswith("hyperclovax")
    scaling = factors["logits_scaling"] if multiplies else 1 / factors["logits_scaling"]
    return float(factors["logit_scale"] * factors["lm_head_multiplier"] * scaling)


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Check once that the model is causal, and that `Head` computes the logits of its architecture.

    Raises:
        UserError: attention is bidirectional, the head has further layers, or its scaling is unknown.
    """
    lm = language_model(model)
    capabilities = capabilities_of(backbone_of(lm))
    if capabilities.head_checked:
        return
    tokens = torch.arange(8, device=next(lm.parameters()).device).repeat(2, 1) * 7919
    tokens[1, 4:] += 1
    inputs = {"input_ids": tokens % lm.config.get_text_config().vocab_size, "attention_mask": torch.ones_like(tokens)}
    with eval_mode(lm), torch.autocast(tokens.device.type, enabled=False):
        theirs = lm(**inputs, use_cache=False).logits.float()
        states = backbone_of(lm)(**inputs, use_cache=False)[0]
        try:
            ours = Head(lm, 1.0, False).logits(states)
        except RuntimeError:  # the head reads states of another width
            ours = states.new_zeros(0)
    tolerance = 1e-4 if lm.dtype == torch.float32 else 0.05
    before = states[:, :4].float()
    if (before[0] - before[1]).norm() > tolerance * before[0].norm():
        raise UserError(
            f"{type(lm).__name__} with this config attends to later tokens, so a response has no log-probability; set "
            "name_or_path to a causal language model"
        )
    if ours.shape != theirs.shape or (ours - theirs).norm() > tolerance * theirs.norm():
        raise UserError(
            f"{type(lm).__name__} computes its logits in an unsupported way, so log-probabilities would be wrong; set "
            "name_or_path to a model of another architecture"
        )
    capabilities.head_checked = True
