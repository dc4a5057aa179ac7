"""Completions as a policy might have written them."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_lightning.types import Completions


def completions(responses: list[str], prompts: list[str] | None = None, **columns: list[Any]) -> Completions:
    """One row a response, a token a word; every row of one prompt, none cut off."""
    count = len(responses)
    mask = torch.tensor([[i < len(text.split()) for i in range(8)] for text in responses])
    zeros = torch.zeros(count, dtype=torch.long)
    tokens = torch.zeros(count, 10, dtype=torch.long)
    given = prompts or ["p"] * count
    return Completions(
        tokens, torch.ones(count, 2, dtype=torch.bool), mask, zeros, zeros.bool(), given, responses, columns
    )
