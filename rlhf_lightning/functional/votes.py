"""Choices between two responses, by several annotators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, SECOND, TIE = 0, 1, 2


@dataclass(frozen=True)
class Votes:
    """N choices between the two responses of I pairs, by A annotators."""

    pairs: Tensor
    """int64 [N]; number of the pair."""
    annotators: Tensor
    """int64 [N]; number of the annotator."""
    choices: Tensor
    """int64 [N]; FIRST, SECOND or TIE."""
    responses: Tensor
    """int64 [I, 2]; numbers of the first and the second response of each pair. Pairs may share responses."""
    swapped: Tensor | None = None
    """bool [N]; True where the second response was shown on the left. None: the first one always was."""
    known: Tensor | None = None
    """int64 [I]; what is known to be true of a pair, -1 of other pairs. `dawid_skene` learns from it how annotators err."""
    counts: Tensor | None = None
    """float64 [N]; how often each choice was made; None for once. `fit_strengths` reads it."""

    @property
    def annotator_count(self) -> int:
        """A."""
        return int(self.annotators.max()) + 1 if len(self.annotators) else 0

    def table(self) -> Tensor:
        """Return float64 [I, 3], how often each choice was made of each pair."""
        found = torch.zeros(len(self.responses), 3, dtype=torch.float64)
        return found.index_put_((self.pairs, self.choices), torch.ones((), dtype=torch.float64), accumulate=True)
