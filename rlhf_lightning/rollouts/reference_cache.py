"""Reference log-probabilities of recorded responses: computed once, before the first step, and kept by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_lightning.distributed import all_gather, rank, world_size
from rlhf_lightning.errors import UserError
from rlhf_lightning.io import atomic_write
from rlhf_lightning.types import Rows


class ReferenceCache:
    """Looks up what the policy said of a response before it learned anything; no second model is held.

    Args:
        path: a safetensors file in the run's folder.
        resumed: read it instead of computing again; a run that begins anew may have another policy than the one that left it.
    """

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.known: dict[str, Tensor] = load_file(path) if resumed and path.is_file() else {}

    def fill(self, said: Callable[[Rows], Tensor], batches: Iterable[Rows]) -> None:
        """Have the log-probabilities that are missing `said` [B, T], each rank its share of the batches, and write the file."""
        before = len(self.known)
        for rows in islice(batches, rank(), None, world_size()):
            keys = content_keys(rows)
            if all(key in self.known for key in keys):
                continue
            logprobs = said(rows).cpu()
            lengths = rows.response_lengths().tolist()
            self.known |= {key: logprobs[i, : lengths[i]].contiguous() for i, key in enumerate(keys)}
        for known in all_gather(self.known):
            self.known |= known
        if len(self.known) > before and rank() == 0:
            atomic_write(self.path, lambda partial: save_file(self.known, partial))

    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """float32 [B, T] of recorded responses, 0 off the mask; `temperature` is the policy's, as it was when they were filled.

        Raises:
            UserError: a response that was not there when the run began.
        """
        nothing = torch.zeros(len(tokens), dtype=torch.long)
        found = torch.zeros(mask.shape, dtype=torch.float32)
        for row, key in enumerate(content_keys(Rows(tokens, prompt_mask, mask, nothing, nothing.bool()))):
            if key not in self.known:
                raise UserError(
                    "the data holds a pair that was not in it when the run began, so its reference log-probabilities are "
                    "not known; a run's data must not change"
                )
            found[row, : len(self.known[key])] = self.known[key]
        return found.to(tokens.device)


def content_keys(rows: Rows) -> list[str]:
    """B names, each of one prompt and response, whatever padding lies around them."""
    width = rows.prompt_mask.shape[1]
    keys = []
    lengths = rows.response_lengths().tolist()
    every = zip(rows.tokens.cpu(), rows.prompt_mask.cpu(), rows.mask.cpu(), lengths, strict=True)
    for tokens, prompt_mask, mask, length in every:
        digest = hashlib.sha256(tokens[:width][prompt_mask].numpy().tobytes())
        digest.update(b"|" + tokens[width : width + length].numpy().tobytes())
        if not mask[:length].all():  # turns of several; of one turn the name stays what it was
            digest.update(b"|" + mask[:length].numpy().tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys
