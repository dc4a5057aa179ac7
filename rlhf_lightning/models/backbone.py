"""The last hidden state of every response token, by one call of a trunk on rows that are packed where that is exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.console import print_first_time
from rlhf_lightning.models.packing import PackedSequences, PrefixGroup, RowSizes, pack_rows
from rlhf_lightning.types import Rows


def backbone_states(backbone: Any, lines: PackedSequences) -> Tensor:
    """[L·S, H]: the last hidden state at every place."""
    mask = (
        torch.ones_like(lines.tokens)
        if lines.attention_mask is None
        else attention_mask_for(lines.attention_mask, backbone)
    )
    output = backbone(input_ids=lines.tokens, attention_mask=mask, position_ids=lines.positions, use_cache=False)
    return output.last_hidden_state.flatten(0, 1)


def attention_mask_for(attention_mask: Tensor, backbone: Any) -> Tensor:
    """A mask [L, 1, S, S] as the attention of `backbone` reads it: bool for SDPA, what to add to the scores for eager attention."""
    if backbone.config.get_text_config()._attn_implementation == "sdpa":
        return attention_mask
    return torch.zeros(attention_mask.shape, dtype=backbone.dtype, device=attention_mask.device).masked_fill(
        ~attention_mask, torch.finfo(backbone.dtype).min
    )


# -- is it exact -----------------------------------------------------------------------------------------------------------


def supports_packing(backbone: Any) -> bool:
    """Whether rows may share a line; found out once, and remembered by the trunk. Ranks that share weights ask together."""
    if not hasattr(backbone, "supports_packing"):
        reason = _why_no_packing(backbone)
        backbone.supports_packing = reason is None
        if reason is not None:
            print_first_time(
                f"{type(backbone).__name__}: rows are padded and prompts computed for each response, as {reason}"
            )
    return bool(backbone.supports_packing)


def max_packed_length(config: Any) -> int:
    """Tokens that every layer can look back over: the narrowest window, or what the model has positions for."""
    endings = ("window", "window_size", "chunk_size", "max_position_embeddings")
    found = [x for name, x in vars(config).items() if name.endswith(endings) and isinstance(x, int) and x > 0]
    return min(found, default=2**62)


def _why_no_packing(backbone: Any) -> str | None:
    """Why rows may not share a line; None where they may."""
    config = backbone.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
        "chunked_attention",
    }
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation} takes no block mask"
    if getattr(getattr(config, "attn_config", config), "alibi", False):
        return "its attention counts from the beginning of a line"
    try:
        apart = _packing_error(backbone, config.vocab_size)
    except Exception as error:  # an architecture may refuse a mask or positions in any way
        return f"it takes no block mask ({type(error).__name__})"
    tolerance = 1e-4 if backbone.dtype == torch.float32 else 0.05  # rounding alone leaves 1e-6, and 0.01 in 16 bits
    return None if apart < tolerance else f"its states would be {apart:.1e} off in one line"


@torch.no_grad()
def _packing_error(backbone: Any, vocabulary: int) -> float:
    """How far the states of three tiny rows in one line are from those of a line each, over the norm of the latter."""
    device = next(backbone.parameters()).device
    tokens = (torch.arange(33, device=device).view(3, 11) * 7919 + 13) % vocabulary
    tokens[1, :6] = tokens[0, :6]
    prompt_mask = torch.ones(3, 6, dtype=torch.bool, device=device)
    none = torch.zeros(3, dtype=torch.long, device=device)
    rows = Rows(tokens, prompt_mask, torch.ones_like(tokens[:, 6:], dtype=torch.bool), none, none.bool())
    sizes = RowSizes([6] * 3, [5] * 3, [0, 0, 1], [0] * 3, [1] * 3)
    raise_on_all_ranks = [[PrefixGroup([0, 1], 16), PrefixGroup([2], 11)]]
    with eval_mode(backbone), torch.autocast(device.type, enabled=False):
        found = []
        for layout in (raise_on_all_ranks, [[PrefixGroup([row], 11)] for row in range(3)]):
            lines = pack_rows(rows, sizes, layout)
            found.append(backbone_states(backbone, lines)[lines.before(none + 6)].float())
    return float((found[0] - found[1]).norm() / found[1].norm())


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Without dropout and anything else that draws random numbers; every module's mode is put back."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def language_model(model: nn.Module) -> Any:
    """The transformers model inside a peft one, or the model itself."""
    inner: Any = model
    return inner.get_base_model() if hasattr(model, "get_base_model") else inner


def backbone_of(model: nn.Module) -> Any:
    """What is below the head of a transformers model, or of the one inside a peft model."""
    return language_model(model).base_model
