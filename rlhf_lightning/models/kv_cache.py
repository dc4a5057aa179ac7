"""Keys and values of rows that decode side by side, each at a position of its own: written in place, never concatenated."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class SlotLayer(CacheLayerMixin):
    """One layer: keys and values [slots, heads, columns, head width]; a slot is filled from its first column on.

    There are `columns` at first; whenever they are too few, twice as many, up to `limit`, of the slots that are then in use.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, slots: int, columns: int, limit: int) -> None:
        super().__init__()
        self.slots, self.columns, self.limit = slots, columns, limit
        self.reach = 0
        """Columns that are read: those of the longest row."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, as wide as what is given and of its kind."""
        self.keys, self.values = (
            states.new_empty(self.slots, states.shape[1], self.columns, states.shape[3]).zero_()
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def place(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Begin `slots` with keys and values [n, heads, P, head width]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys[slots, :, : keys.shape[2]] = keys
        self.values[slots, :, : values.shape[2]] = values

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy rows from slot to slot; none is both a target and a source."""
        for states in (self.keys, self.values):
            states[targets, :, : self.reach] = states[sources, :, : self.reach]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the token of each of the first n slots into its column of `at`; return what attention may read."""
        n = len(key_states)
        # under autocast a prompt's cache is float32 (its concatenation promotes), while a token's values may be half
        self.keys[self.index, :, self.at] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[self.index, :, self.at] = value_states[:, :, 0].to(self.values.dtype)
        return self.keys[:n, :, : self.reach], self.values[:n, :, : self.reach]

    def point(self, index: Tensor, at: Tensor, reach: int) -> None:
        """The next tokens belong to slots `index` [n], columns `at` [n]; the longest row will then have `reach`."""
        self.index, self.at, self.reach = index, at, reach
        while self.columns < reach:
            more = min(self.columns, self.limit - self.columns)
            self.keys, self.values = (F.pad(x[: len(at)], (0, 0, 0, more)) for x in (self.keys, self.values))
            self.columns += more

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As many columns as attention reads, from the first."""
        return self.reach, 0

    def get_seq_length(self) -> int:
        """What the longest row had before this step."""
        return self.reach - 1

    def get_max_length(self) -> int:
        """The columns there may be."""
        return self.limit


class SlotCache(Cache):
    """A cache of `SlotLayer`s: room for `slots` rows of up to `limit` tokens.

    Columns beyond a row's length hold what earlier rows left there, so every step needs a mask. All slots are in use until no
    row waits any more; from then on the first ones, ever fewer.
    """

    layers: Any  # SlotLayers

    def __init__(self, layers: int, slots: int, columns: int, limit: int) -> None:
        super().__init__(layers=[SlotLayer(slots, min(columns, limit), limit) for _ in range(layers)])

    def place(self, slots: Tensor, prefilled: Any, rows: Tensor, length: int) -> None:
        """Begin `slots` [n] with the first `length` columns of `rows` [n] of another cache."""
        for layer, other in zip(self.layers, prefilled.layers, strict=True):
            layer.place(slots, other.keys[rows, :, :length], other.values[rows, :, :length])

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy rows from slot to slot; none is both a target and a source."""
        for layer in self.layers:
            layer.move(targets, sources)

    def point(self, at: Tensor, reach: int) -> None:
        """Before a step of the first n slots: their tokens belong into columns `at` [n], all below `reach`."""
        index = torch.arange(len(at), device=at.device)
        for layer in self.layers:
            layer.point(index, at, reach)


def is_plain(cache: Any, longest: int) -> bool:
    """Nothing but keys and values in every layer, of every token of a row of `longest`: no windows, states or shared layers."""
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and longest <= layer.sliding_window)  # and so nothing slides out
        for layer in cache.layers
    )


def rows_are_independent(lm: Any, longest: int) -> bool:
    """Rows of up to `longest` tokens may stand in any column, and beside any others, as far as model and config say.

    Not so with windows or recurrent layers, with positions that the model counts itself (ALiBi, the decoders of BART and its
    kin) and with rotary ones that the longest row scales.
    """
    config = lm.config.get_text_config(decoder=True)
    return (
        "position_ids" in inspect.signature(lm.base_model.forward).parameters
        and "local"
        not in (getattr(config, "attention_layers", None) or ())  # GPT-Neo's windows, which its cache knows not
        and longest <= _scaled_from(config)
        and is_plain(DynamicCache(config=config), longest)
    )


def _scaled_from(config: Any) -> float:
    """The longest row that rotary positions are not scaled for; infinite where they are scaled always or never."""
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    scaled = [part for part in parts if part.get("rope_type") in ("dynamic", "longrope")]
    limits = [part.get("original_max_position_embeddings", config.max_position_embeddings) for part in scaled]
    return min([*limits, config.max_position_embeddings]) if scaled else float("inf")
