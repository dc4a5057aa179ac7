"""Find the backbone of a model, and hold what the backbone can do: packing, tokens per pass, checked head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlhf_lightning.console import print_first_time
from rlhf_lightning.models.packing import Layout, PackedSequences, PrefixGroup, RowSizes, pack_rows
from rlhf_lightning.types import Rows

BLOCK_MASK_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types of transformers that read a mask of four dimensions."""


@dataclass
class Capabilities:
    """Hold what one backbone can do, and how much one pass may feed it."""

    max_tokens_per_batch: int | None = None
    """Tokens of one pass without gradient; None for no limit."""
    packing: bool | None = None
    """Whether rows may share a packed sequence; None until `supports_packing` probes it."""
    head_checked: bool = False
    """Whether `logprobs.check_head` has accepted the model's head."""


_CAPABILITIES: WeakKeyDictionary[Any, Capabilities] = WeakKeyDictionary()
"""One entry per backbone module, so that nothing is set on objects of transformers."""


def capabilities_of(backbone: Any) -> Capabilities:
    """Return the capabilities of `backbone`; a view of a backbone (`unwrapped`) has those of the module."""
    return _CAPABILITIES.setdefault(getattr(backbone, "unwrapped", backbone), Capabilities())


def language_model(model: nn.Module) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    inner: Any = model
    return inner.get_base_model() if hasattr(model, "get_base_model") else inner


def backbone_of(model: nn.Module) -> Any:
    """Return the module below the head of a transformers model, or of the one inside a peft model."""
    lm = language_model(model)
    below = lm.base_model
    return lm.model if below is lm and hasattr(lm, "model") else below  # Llama 4 has the prefix of its multimodal model


def backbone_states(backbone: Any, packed: PackedSequences) -> Tensor:
    """Compute the last hidden state at every position.

    Returns:
        [L·S, H].
    """
    mask = (
        torch.ones_like(packed.tokens)
        if packed.attention_mask is None
        else attention_mask_for(packed.attention_mask, backbone)
    )
    output = backbone(input_ids=packed.tokens, attention_mask=mask, position_ids=packed.positions, use_cache=False)
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def attention_mask_for(attention_mask: Tensor, backbone: Any) -> Tensor:
    """Convert a mask [L, 1, S, S] for the attention of `backbone`: bool for SDPA, additive scores for eager attention."""
    if backbone.config.get_text_config()._attn_implementation == "sdpa":
        return attention_mask
    return torch.zeros(attention_mask.shape, dtype=backbone.dtype, device=attention_mask.device).masked_fill(
        ~attention_mask, torch.finfo(backbone.dtype).min
    )


# -- probing ---------------------------------------------------------------------------------------------------------------


def supports_packing(backbone: Any) -> bool:
    """Tell whether rows may share a packed sequence; the first call probes it with a forward pass over three rows.

    Ranks that share weights must call it together.
    """
    capabilities = capabilities_of(backbone)
    if capabilities.packing is None:
        reason = _why_no_packing(backbone)
        capabilities.packing = reason is None
        if reason is not None:
            print_first_time(
                f"{type(backbone).__name__}: rows are padded and prompts computed for each response, as {reason}"
            )
    return capabilities.packing


def max_packed_length(config: Any) -> int:
    """Return the longest sequence that every layer reads whole: the narrowest window, or the model's last position."""
    endings = ("window", "window_size", "chunk_size", "max_position_embeddings")
    limits = [x for name, x in vars(config).items() if name.endswith(endings) and isinstance(x, int) and x > 0]
    return min(limits, default=2**62)


def _why_no_packing(backbone: Any) -> str | None:
    """Return why rows may not share a packed sequence; None where they may."""
    config = backbone.config.get_text_config()
    unsupported = set(getattr(config, "layer_types", None) or ()) - BLOCK_MASK_LAYERS
    if unsupported:
        return f"it has layers of {', '.join(sorted(unsupported))}"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation} takes no block mask"
    if getattr(getattr(config, "attn_config", config), "alibi", False):
        return "its attention counts positions from the start of a packed sequence"
    try:
        error = _packing_error(backbone, config.vocab_size)
    except Exception as failure:  # an architecture may refuse a mask or positions with any exception
        return f"it takes no block mask ({type(failure).__name__})"
    tolerance = 1e-4 if backbone.dtype == torch.float32 else 0.05  # rounding alone leaves 1e-6, and 0.01 in 16 bits
    return None if error < tolerance else f"packing would change its hidden states by {error:.1e}"


@torch.no_grad()
def _packing_error(backbone: Any, vocabulary: int) -> float:
    """Measure the relative distance between the hidden states of three packed rows and of the same rows unpacked."""
    device = next(backbone.parameters()).device
    tokens = (torch.arange(33, device=device).view(3, 11) * 7919 + 13) % vocabulary
    tokens[1, :6] = tokens[0, :6]
    prompt_mask = torch.ones(3, 6, dtype=torch.bool, device=device)
    zeros = torch.zeros(3, dtype=torch.long, device=device)
    rows = Rows(tokens, prompt_mask, torch.ones_like(tokens[:, 6:], dtype=torch.bool), zeros, zeros.bool())
    sizes = RowSizes([6] * 3, [5] * 3, [0, 0, 1], [0] * 3, [1] * 3)
    one_sequence = [[PrefixGroup([0, 1], 16), PrefixGroup([2], 11)]]
    unpacked = [[PrefixGroup([row], 11)] for row in range(3)]

    def states(layout: Layout) -> Tensor:
        packed = pack_rows(rows, sizes, layout)
        chosen = torch.ones(3, 6, dtype=torch.bool, device=device).nonzero(as_tuple=True)
        return backbone_states(backbone, packed)[packed.before(*chosen)].float()

    with eval_mode(backbone), torch.autocast(device.type, enabled=False):
        measured, expected = states(one_sequence), states(unpacked)
    return float((measured - expected).norm() / expected.norm())


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put every module into eval mode inside the block, and restore each module's mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
