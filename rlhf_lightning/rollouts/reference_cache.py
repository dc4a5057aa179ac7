"""Reference log-probabilities of recorded responses, computed once before the first step and cached by content."""

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
    """Holds the log-probabilities of recorded responses under the initial policy, instead of a second model.

    Args:
        path: a safetensors file in the run's folder.
        resumed: read the file of the run. A new run in the same folder may have another policy, so it computes them again.
    """

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.cached: dict[str, Tensor] = load_file(path) if resumed and path.is_file() else {}

    def fill(self, compute: Callable[[Rows], Tensor], batches: Iterable[Rows]) -> None:
        """Compute the missing log-probabilities, each rank those of its shard of the batches, and save the file.

        Args:
            compute: B rows → float32 [B, T] log-probabilities of their responses.
            batches: all recorded rows, the same on every rank.
        """
        before = len(self.cached)
        for rows in islice(batches, rank(), None, world_size()):
            keys = content_keys(rows)
            if all(key in self.cached for key in keys):
                continue
            logprobs = compute(rows).cpu()
            lengths = rows.reach.tolist()
            self.cached |= {key: logprobs[i, : lengths[i]].contiguous() for i, key in enumerate(keys)}
        for cached in all_gather(self.cached):
            self.cached |= cached
        if len(self.cached) > before and rank() == 0:
            atomic_write(self.path, lambda partial: save_file(self.cached, partial))

    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Return float32 [B, T], for recorded responses, 0 off the mask; a row without a chosen token needs no entry.

        Args:
            tokens: int64 [B, P+T].
            prompt_mask: bool [B, P].
            mask: bool [B, T].
            temperature: not read; the cache was filled at the policy's temperature.

        Raises:
            UserError: the data did not hold a response when the run began.
        """
        zeros = torch.zeros(len(tokens), dtype=torch.long)
        logprobs = torch.zeros(mask.shape, dtype=torch.float32)
        for row, key in enumerate(content_keys(Rows(tokens, prompt_mask, mask, zeros, zeros.bool()))):
            if not mask[row].any():  # the dummy row of a rank without rows
                continue
            if key not in self.cached:
                raise UserError(
                    "the data holds a pair that was not in it when the run began, so its reference log-probabilities are "
                    "missing; restore the data, or start a new run"
                )
            logprobs[row, : len(self.cached[key])] = self.cached[key]
        return logprobs.to(tokens.device)


def content_keys(rows: Rows) -> list[str]:
    """Return B hashes, each of the token ids of one prompt and response and of which are chosen, without padding."""
    width = rows.prompt_mask.shape[1]
    keys = []
    lengths = rows.reach.tolist()
    every = zip(rows.tokens.cpu(), rows.prompt_mask.cpu(), rows.mask.cpu(), lengths, strict=True)
    for tokens, prompt_mask, mask, length in every:
        digest = hashlib.sha256(tokens[:width][prompt_mask].numpy().tobytes())
        digest.update(b"|" + tokens[width : width + length].numpy().tobytes())
        if not mask[:length].all():  # a row with holes; the key of a row without stays what it was
            digest.update(b"|" + mask[:length].numpy().tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys
