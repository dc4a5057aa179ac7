"""What a validation or a test measures on held-out rows, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from rlhf_lightning.distributed import all_gather, interleave_shards
from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.rollouts.collector import mean_score
from rlhf_lightning.types import Completions

Sample = dict[str, Any]


class ValidationMetrics:
    """Numbers and texts of this rank's share of the held-out rows, batch after batch; read once, by all ranks together."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[float]] = {}
        self.samples_of_batches: list[list[Sample]] = []

    def begin_batch(self) -> None:
        """All ranks begin each batch, also one that they have no rows of."""
        self.samples_of_batches.append([])

    def add(self, name: str, values: Iterable[float | None]) -> None:
        """Keep one number for each row or token (None: not known)."""
        self.numbers.setdefault(name, []).extend(float("nan") if x is None else float(x) for x in values)

    def add_completions(self, completions: Completions, rewards: dict[str, Reward]) -> None:
        """Keep scores, their components, lengths and the texts themselves; a reward called `mean` is the one that trains."""
        texts = zip(completions.prompts, completions.responses, strict=True)
        samples: list[Sample] = [{"prompt": prompt, "response": response} for prompt, response in texts]
        for name, reward in rewards.items():
            scores = score(reward, completions).tolist()
            self.add(f"reward/{name}", scores)
            for sample, value in zip(samples, scores, strict=True):
                sample["reward" if name == "mean" else f"reward/{name}"] = value
            for component, values in reward.components().items():
                self.add(f"reward/{component}" if name == "mean" else f"reward/{name}/{component}", values)
        self.add("response/length", completions.mask.sum(-1).tolist())
        self.add("response/truncated", completions.truncated.tolist())
        self.samples_of_batches[-1] += samples

    def means(self, device: torch.device) -> dict[str, float]:
        """The mean over all ranks of what is known, under every name that any rank has."""
        names = dict.fromkeys(name for known in all_gather(list(self.numbers)) for name in known)
        return {name: float(mean_score(self.numbers.get(name, []), device)) for name in names}

    def samples(self) -> list[Sample]:
        """What was written on all ranks, in the order of the rows."""
        batches = zip(*all_gather(self.samples_of_batches), strict=True)
        return [sample for parts in batches for sample in interleave_shards(list(parts))]
