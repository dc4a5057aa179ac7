"""An ensemble of heads on one backbone: added to a reward model, averaged for its export, and read back from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.models.paths import resolve_path
from rlhf_lightning.seeding import seeded

HEADS_FILE = "heads.safetensors"
"""File of an export with the head of every member, `weight` [K, H]; the model beside it has their mean."""


def add_heads(model: nn.Module, count: int, seed: int, saved: Tensor | None = None) -> None:
    """Replace the head of a reward model by K heads whose mean is that head.

    Each is the head plus a random deviation of the size of a new head. Where the data says nothing about a direction of the
    features the deviations stay, like the random priors of Osband et al. 2018 (arXiv 1806.03335).

    Args:
        model: a sequence classifier of one output, or an adapter with one.
        count: K.
        seed: of the deviations.
        saved: [K, H], heads of an earlier export, which are taken as they are where they are K.

    Raises:
        UserError: the head is no plain linear layer.
    """
    holder, name = _head_place(model)
    old = holder.get_submodule(name)
    if not isinstance(old, nn.Linear) or old.bias is not None:
        raise UserError(
            f"heads is {count}, and the model's head is a {type(old).__name__}{' with a bias' * (type(old) is nn.Linear)}, where "
            "a linear layer without bias is expected; set heads to 1"
        )
    if saved is not None and len(saved) == count:
        weights = saved
    else:
        scale = getattr(language_model(model).config.get_text_config(), "initializer_range", 0.02)
        with seeded(seed):
            noise = scale * torch.randn(count, old.in_features)
        weights = old.weight.detach().float().cpu() + noise - noise.mean(0)
    _replace_head(model, weights)


def head_weights(model: nn.Module) -> Tensor:
    """Return [K, H], the weight of every head."""
    holder, name = _head_place(model)
    return cast(nn.Linear, holder.get_submodule(name)).weight.detach()


def freeze_all_but_head(model: nn.Module) -> None:
    """Let the heads alone train."""
    model.requires_grad_(False)
    holder, name = _head_place(model)
    holder.get_submodule(name).requires_grad_(True)


def saved_heads(config: ModelConfig) -> Tensor | None:
    """Read [K, H] from the export that a config names; None where it has one head."""
    path = Path(resolve_path(config.name_or_path)) / HEADS_FILE if config.name_or_path else None
    if path is None or not path.is_file():
        return None
    from safetensors.torch import load_file

    return load_file(path)["weight"]


@contextmanager
def averaged_heads(
    model: nn.Module, state: dict[str, Tensor] | None
) -> Iterator[tuple[dict[str, Tensor] | None, dict[str, dict[str, Tensor]]]]:
    """Give the model the mean of its heads as its head inside the block.

    A score is linear in the head, so the mean head gives the mean of the scores.

    Args:
        model: with K heads.
        state: gathered weights of a sharded model; None reads them from the model.

    Yields:
        The state with the mean head, and the heads as a file of the export: {} where K is 1.
    """
    names = [name for name in state or {} if name.endswith((".score.weight", ".score.modules_to_save.default.weight"))]
    weights = state[names[0]] if state and names else head_weights(model)
    if len(weights) == 1:
        yield state, {}
        return
    mean = weights.float().mean(0, keepdim=True).to(weights.dtype)
    holder, name = _head_place(model)
    heads = holder.get_submodule(name)
    _replace_head(model, mean)
    try:
        yield state and state | dict.fromkeys(names, mean), {HEADS_FILE: {"weight": weights.contiguous().cpu()}}
    finally:
        holder.add_module(name, heads)


def _replace_head(model: nn.Module, weights: Tensor) -> None:
    """Put a linear layer with these weights, float [K, H], in the place of the head."""
    holder, name = _head_place(model)
    old = cast(nn.Linear, holder.get_submodule(name))
    new = nn.Linear(weights.shape[1], len(weights), bias=False, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(weights)
    new.weight.requires_grad_(old.weight.requires_grad)
    holder.add_module(name, new.train(old.training))


def _head_place(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that holds the head, and its name there; an adapter holds a copy of its own."""
    lm = language_model(model)
    copies = getattr(lm.score, "modules_to_save", None)
    return (lm, "score") if copies is None else (copies, "default")
