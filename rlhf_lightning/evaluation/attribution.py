"""Which tokens of a response a reward model's score comes from, by integrated gradients (Sundararajan et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.reward_model import score_normalization
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.model import ModelReward

AT_ONCE = 8
"""Points of the path in one pass."""


def integrated_gradients(model: nn.Module, ids: Tensor, start: int, steps: int) -> Tensor:
    """Attribute the score of a sequence classifier to the tokens from `start` on.

    The path leads from the mean embedding of the vocabulary, in every place, to the embeddings of the tokens; the midpoint rule
    integrates along it. (At a zero embedding, which padding often has, a normalised model is not continuous.) The prompt before
    `start` does not change. The attributions sum to the difference of the two scores, up to the error of the rule.

    Args:
        model: a sequence classifier with one output.
        ids: int64 [N]; prompt and response.
        start: first token of the response.
        steps: points on the path.

    Returns:
        float32 [N - start].
    """
    with torch.inference_mode(False), torch.enable_grad(), _quiet():
        weights = {name: _ordinary(value.detach()) for name, value in _tensors(model).items()}
        ids = ids.clone()
        embed = language_model(model).get_input_embeddings()
        with torch.no_grad():
            table = _tensors(embed, _ordinary)
            full = torch.func.functional_call(embed, table, (ids,))
            blank = torch.func.functional_call(embed, table, (torch.arange(embed.num_embeddings, device=ids.device),))
        base = torch.cat([full[:start], blank.mean(0).expand_as(full[start:])])
        total = torch.zeros_like(full, dtype=torch.float32)
        points = (torch.arange(steps, device=ids.device) + 0.5) / steps
        for chunk in points.split(AT_ONCE):
            x = (base + chunk.to(full.dtype)[:, None, None] * (full - base)).detach().requires_grad_()
            mask = torch.ones(x.shape[:2], dtype=torch.long, device=ids.device)
            options = {"inputs_embeds": x, "attention_mask": mask, "use_cache": False}
            scores = torch.func.functional_call(model, weights, (), options).logits
            total += torch.autograd.grad(scores.float().sum(), x)[0].float().sum(0)
        return ((full - base).float() * total / steps).sum(-1)[start:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warning of transformers that it finds no padding among embeddings, of which there is none."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _tensors(module: nn.Module, convert: Any = lambda tensor: tensor) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: convert(tensor.detach()) for name, tensor in tensors.items()}


def _ordinary(tensor: Tensor) -> Tensor:
    """Copy a tensor that was created in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor


def attribute_score(
    reward: ModelReward, prompt: Any, response: str, truncated: bool, steps: int
) -> list[dict[str, Any]]:
    """Attribute a reward model's normalised score of a response to its tokens.

    Returns:
        Per token of the response, as the reward model encodes it, `token` and `attribution`.
    """
    encoder = reward.encoder
    tokens = encoder.generated(prompt, response)
    head, body = encoder.pair(encoder.prompt(prompt), tokens[:-1] if truncated else tokens, reward.max_length)
    device = next(reward.model.parameters()).device
    with torch.inference_mode(False):
        ids = torch.tensor(head + body, device=device)
    values = integrated_gradients(reward.model, ids, len(head), steps)
    values = values / score_normalization(reward.model).get("score_std", 1.0)
    texts = [encoder.tokenizer.decode([token]) for token in body]
    return [{"token": text, "attribution": value} for text, value in zip(texts, values.tolist(), strict=True)]


def check_attributable(rewards: Mapping[str, Reward]) -> dict[str, ModelReward]:
    """Return the rewards as reward models.

    Raises:
        UserError: one of them is no reward model.
    """
    found = {name: reward for name, reward in rewards.items() if isinstance(reward, ModelReward)}
    if other := [name for name in rewards if name not in found]:
        kind = type(rewards[other[0]]).__name__
        raise UserError(f"reward {other[0]!r} is a {kind}; integrated gradients need a ModelReward")
    return found
