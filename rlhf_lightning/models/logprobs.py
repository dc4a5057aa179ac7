"""The policy, and the one function that computes log-probabilities of responses."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import backbone_of, eval_mode, language_model
from rlhf_lightning.models.packed_forward import hidden_states_before, in_micro_batches
from rlhf_lightning.types import Rows

CHUNK_ELEMENTS = 2**23
"""Logits that exist at a time: a chunk of tokens times the vocabulary (32 MiB in float32); twice as many on CUDA."""


class TokenScores(NamedTuple):
    """What one pass says of response tokens; float32 [B, T] each, 0 off the mask."""

    logprobs: Tensor
    entropy: Tensor | None
    hidden: Tensor
    """[N, H]; the last hidden state before each of the N tokens under the mask, from which a critic on the same trunk reads."""


def token_scores(model: nn.Module, rows: Rows, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
    """Log-probabilities of the response tokens of `rows` under `model`, at `temperature`, in float32.

    Only tokens under the mask go through the head, a chunk at a time and recomputed in the backward pass, so that
    [B, T, V] never exists.
    """
    lm = language_model(model)
    hidden = hidden_states_before(lm.base_model, rows)
    targets = rows.tokens[:, rows.prompt_mask.shape[1] :][rows.mask]
    logprobs, entropies = Head(lm, temperature, entropy)(hidden, targets)
    empty = torch.zeros(rows.mask.shape, dtype=torch.float32, device=hidden.device)
    spread = None if entropies is None else empty.masked_scatter(rows.mask, entropies)
    return TokenScores(empty.masked_scatter(rows.mask, logprobs), spread, hidden)


def response_logprobs(
    model: nn.Module, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """float32 [B, T]: `token_scores` for tensors that are no rollout yet."""
    none = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    rows = Rows(tokens, prompt_mask, mask, none, none.bool())
    found = in_micro_batches(backbone_of(model), rows, lambda part: token_scores(model, part, temperature)[:1])
    return cast(Tensor, found[0])


class Head:
    """From hidden states of N tokens to their log-probabilities (and entropies), a chunk at a time."""

    def __init__(self, lm: Any, temperature: float, entropy: bool) -> None:
        self.project, self.config = lm.get_output_embeddings(), lm.config.get_text_config()
        self.temperature, self.entropy = temperature, entropy

    def __call__(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N] log-probabilities and [N] entropies, or None, of `targets` [N] given `hidden` [N, H]."""
        size = max(1, CHUNK_ELEMENTS * (1 + hidden.is_cuda) // self.config.vocab_size)
        if len(hidden) <= size:
            logprobs, entropies = self._chunk(hidden, targets)
            return logprobs, entropies if self.entropy else None
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        parts = [checkpoint(self._chunk, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]) if self.entropy else None

    def _chunk(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(hidden)
        logits = logits if self.temperature == 1 else logits / self.temperature
        normalizer = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
        if not self.entropy:
            return logprobs, logprobs
        return logprobs, normalizer - (logits.softmax(-1) * logits).sum(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [N, V]: the head's output as the architecture caps (Gemma) and scales it."""
        logits = self.project(hidden.to(self.project.weight.dtype)).float()  # Mamba's states are float32 in any model
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        scale = logit_scale(self.config)
        return logits if scale == 1 else logits * scale


def logit_scale(config: Any) -> float:
    """What an architecture multiplies the output of its head by: Cohere, Falcon H1, Granite (which divides), HyperCLOVA X."""
    given = {
        name: getattr(config, name, None) or 1.0 for name in ("logit_scale", "lm_head_multiplier", "logits_scaling")
    }
    multiplies = config.model_type.startswith("hyperclovax")
    scaling = given["logits_scaling"] if multiplies else 1 / given["logits_scaling"]
    return float(given["logit_scale"] * given["lm_head_multiplier"] * scaling)


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Find out, once, whether a state knows no later token, and `Head` makes of it the logits that the architecture makes.

    Raises:
        UserError: it reads in both directions, has further layers in its head, or scales in a way that is not known.
    """
    lm = language_model(model)
    if hasattr(lm, "head_is_known"):
        return
    tokens = torch.arange(8, device=next(lm.parameters()).device).repeat(2, 1) * 7919
    tokens[1, 4:] += 1
    inputs = {"input_ids": tokens % lm.config.get_text_config().vocab_size, "attention_mask": torch.ones_like(tokens)}
    with eval_mode(lm), torch.autocast(tokens.device.type, enabled=False):
        theirs = lm(**inputs, use_cache=False).logits.float()
        states = lm.base_model(**inputs, use_cache=False)[0]
        try:
            ours = Head(lm, 1.0, False).logits(states)
        except RuntimeError:  # its head takes states of another width
            ours = states.new_zeros(0)
    tolerance = 1e-4 if lm.dtype == torch.float32 else 0.05
    before = states[:, :4].float()
    if (before[0] - before[1]).norm() > tolerance * before[0].norm():
        raise UserError(
            f"{type(lm).__name__} as its config has it lets a token read those after it, so it does not write from left to right "
            "and a response has no log-probability; choose another architecture"
        )
    if ours.shape != theirs.shape or (ours - theirs).norm() > tolerance * theirs.norm():
        raise UserError(
            f"{type(lm).__name__} makes its logits in a way of its own, so their log-probabilities would be wrong here; choose "
            "another architecture"
        )
    lm.head_is_known = True
