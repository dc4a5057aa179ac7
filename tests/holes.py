"""Rows of several turns: some tokens before the last that the policy chose are ones that it read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, arange

from rlhf_lightning.generation.base import Generated
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.types import RowsT

TURNS = [{"role": role, "content": role * 2} for role in ("assistant", "user", "assistant", "user", "assistant")]
"""Recorded turns behind a user's message."""


def read_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mark about two in five of the chosen tokens [B, T] before the last one; each row's choice depends on its tokens alone."""
    places = arange(tokens.shape[1], device=tokens.device)
    last = mask & (places == mask.sum(-1, keepdim=True) - 1)  # of rows that have no holes yet
    return mask & ~last & ((tokens * 31 + places * 7) % 5 < 2)


def with_holes(rows: RowsT) -> RowsT:
    """Make tokens of responses without holes ones that were read."""
    responses = rows.tokens[:, rows.prompt_mask.shape[1] :]
    holed = replace(rows, mask=rows.mask & ~read_tokens(responses, rows.mask))
    assert holed.reach.equal(rows.reach)
    assert holed.mask.sum() < rows.mask.sum()
    return holed


@dataclass
class ReadingSampler(Sampler):
    """Samples responses, and says of some tokens that they were read, as a generator of episodes would."""

    def generate(self, *args: Any, **options: Any) -> Generated:
        """Implement `Generator.generate`."""
        generated = super().generate(*args, **options)
        return replace(generated, mask=generated.mask & ~read_tokens(generated.tokens, generated.mask))
