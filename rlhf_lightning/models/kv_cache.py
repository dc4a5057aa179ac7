"""Hold keys and values of rows that decode together at different positions, updated in place."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_lightning.models.backbone import backbone_of
from rlhf_lightning.models.half_precision import for_cache


class SlotLayer(CacheLayerMixin):
    """Hold the keys and values [slots, heads, columns, head width] of one layer; a slot is filled from its first column.

    The layer starts with `columns` columns. They double when they are too few, up to `limit`, for the slots in use.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, slots: int, columns: int, limit: int) -> None:
        super().__init__()
        self.slots, self.columns, self.limit = slots, columns, limit
        self.longest = 0
        """Number of columns that attention reads, the length of the longest row."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate keys and values with the widths and device of the given states, in the dtype of `for_cache`."""
        self.keys, self.values = (
            states.new_zeros(self.slots, states.shape[1], self.columns, states.shape[3])
            for states in (for_cache(key_states[:1, :, :1]), for_cache(value_states[:1, :, :1]))
        )
        self.is_initialized = True

    def place(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Fill `slots` with keys and values [n, heads, P, head width]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys[slots, :, : keys.shape[2]] = for_cache(keys)
        self.values[slots, :, : values.shape[2]] = for_cache(values)

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy rows between slots; no slot is both a target and a source."""
        for states in (self.keys, self.values):
            states[targets, :, : self.longest] = states[sources, :, : self.longest]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the token of each of the first n slots in its column of `at`; return the columns that attention reads."""
        n = len(key_states)
        self.keys[self.index, :, self.at] = for_cache(key_states[:, :, 0])
        self.values[self.index, :, self.at] = for_cache(value_states[:, :, 0])
        return self.keys[:n, :, : self.longest], self.values[:n, :, : self.longest]

    def point(self, index: Tensor, at: Tensor, longest: int) -> None:
        """Set the slots `index` [n] and columns `at` [n] of the next tokens, and the length `longest` of the longest row."""
        self.index, self.at, self.longest = index, at, longest
        while self.columns < longest:
            more = min(self.columns, self.limit - self.columns)
            self.keys, self.values = (F.pad(x[: len(at)], (0, 0, 0, more)) for x in (self.keys, self.values))
            self.columns += more

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number and offset of the columns that attention reads."""
        return self.longest, 0

    def get_seq_length(self) -> int:
        """Return the length of the longest row before this step."""
        return self.longest - 1

    def get_max_length(self) -> int:
        """Return the maximum number of columns."""
        return self.limit


class SlotCache(Cache):
    """Hold a `SlotLayer` per layer, for `slots` rows of up to `limit` tokens.

    Columns beyond a row's length hold values of earlier rows, so every step needs a mask. All slots are in use while rows
    wait; afterwards the slots in use are the first ones, and their number only falls.
    """

    layers: Any  # SlotLayers

    def __init__(self, layers: int, slots: int, columns: int, limit: int) -> None:
        super().__init__(layers=[SlotLayer(slots, min(columns, limit), limit) for _ in range(layers)])

    def place(self, slots: Tensor, prefilled: Any, rows: Tensor, length: int) -> None:
        """Fill `slots` [n] with the first `length` columns of `rows` [n] of another cache."""
        for layer, other in zip(self.layers, prefilled.layers, strict=True):
            layer.place(slots, other.keys[rows, :, :length], other.values[rows, :, :length])

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy rows between slots; no slot is both a target and a source."""
        for layer in self.layers:
            layer.move(targets, sources)

    def point(self, at: Tensor, longest: int) -> None:
        """Prepare a step of the first n slots, whose tokens go to columns `at` [n], all below `longest`."""
        index = torch.arange(len(at), device=at.device)
        for layer in self.layers:
            layer.point(index, at, longest)


def is_plain(cache: Any, longest: int) -> bool:
    """Tell whether every layer holds keys and values of all `longest` tokens: no windows, states or shared layers."""
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicLayer
        or (
            type(layer) is DynamicSlidingWindowLayer and longest <= layer.sliding_window
        )  # so the window holds every token
        for layer in cache.layers
    )


def rows_are_independent(lm: Any, longest: int) -> bool:
    """Tell whether rows of up to `longest` tokens can decode together at different positions, by the model and its config.

    They cannot with attention windows, with recurrent layers, or with positions that the model counts itself (ALiBi, the
    decoders of the BART family). They cannot with rotary positions that the longest row scales.
    """
    config = lm.config.get_text_config(decoder=True)
    return (
        "position_ids" in inspect.signature(backbone_of(lm).forward).parameters
        and "local"
        not in (getattr(config, "attention_layers", None) or ())  # GPT-Neo's windows, which its cache does not show
        and longest <= _scaled_from(config)
        and is_plain(DynamicCache(config=config), longest)
    )


def _scaled_from(config: Any) -> float:
    """Return the longest row whose rotary positions are not scaled; infinite where scaling does not depend on the row."""
    rope = getattr(config, "rope_parameters", None) or {}
    candidates = [options for options in (rope, *rope.values()) if isinstance(options, dict)]
    scaled = [options for options in candidates if options.get("rope_type") in ("dynamic", "longrope")]
    limits = [options.get("original_max_position_embeddings", config.max_position_embeddings) for options in scaled]
    return min([*limits, config.max_position_embeddings]) if scaled else float("inf")
