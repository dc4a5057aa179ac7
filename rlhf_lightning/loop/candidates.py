"""The first step of a round: responses of the newest policy, as pairs that could be asked."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.ask import Sampling, generated_items
from rlhf_lightning.feedback.candidates import ItemBuilder, ItemTemplate
from rlhf_lightning.feedback.items import Content, digest
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.config import ModelConfig

BATCH = 32
"""Prompts at a time."""


@dataclass(frozen=True)
class Candidate:
    """A pair of responses that could be asked."""

    prompt: Content
    responses: tuple[Content, Content]
    models: tuple[str | None, str | None]


def is_held_out(prompt: Content, share: float) -> bool:
    """Return whether a prompt is one of the share of prompts that are held out; the prompt alone decides."""
    return int(digest(["held out", prompt])[:12], 16) / 16**12 < share


def prompts_of_round(prompts: Sequence[Content], count: int, seed: int, round_: int) -> list[Content]:
    """Return the prompts of a round: the next ones of a random order, which starts over where it ends.

    Raises:
        UserError: there are fewer than a round takes.
    """
    distinct = list({digest(prompt): prompt for prompt in prompts}.values())
    if len(distinct) < count:
        raise UserError(
            f"there are {len(distinct)} different prompts, and a round takes {count}; set prompts_per_round (and labels) to at "
            f"most {len(distinct)}, or give more prompts"
        )
    order = random.Random(seed).sample(distinct, len(distinct))
    return [order[place % len(order)] for place in range(round_ * count, (round_ + 1) * count)]


def model_of(start: ModelConfig, export: Path | None) -> ModelConfig:
    """Return which model generates: the policy of the round before, in the first round where the policy starts."""
    if export is None:
        return replace(start, lora=None, quantization=None)
    return ModelConfig(
        name_or_path=str(export),
        dtype=start.dtype,
        chat_template=start.chat_template,
        trust_remote_code=start.trust_remote_code,
    )


def generate_candidates(
    store: Path,
    model: ModelConfig,
    generation: Generator,
    prompts: Sequence[Content],
    counts: tuple[int, int],
    seed: int,
) -> list[Candidate]:
    """Generate, and make pairs of responses that differ; what the store has of an interrupted call is not generated again.

    Args:
        store: keeps responses.
        model: generates.
        generation: how to sample.
        prompts: one batch after the other.
        counts: responses and pairs of a prompt.
        seed: of sampling and of choosing pairs.
    """
    responses, pairs = counts
    builder = ItemBuilder(ItemTemplate("pair", 1, ()), pairs, seed)
    rows = [{"prompt": prompt} for prompt in prompts]
    with Store(store, create=True) as opened:
        items = generated_items(opened, rows, Sampling((model,), responses, generation, seed, BATCH), builder)
    return [
        Candidate(item.prompt, (first.content or "", second.content or ""), (first.model, second.model))
        for item in items
        for first, second in [item.responses]
    ]


def ask_file(round_: int, model: ModelConfig, prompts: int, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return the content of `ask.json`."""
    pairs = [asdict(candidate) for candidate in candidates]
    return {"round": round_, "model": model.name_or_path, "prompts": prompts, "pairs": pairs}


def read_candidates(path: Path) -> list[Candidate]:
    """Read the pairs of `ask.json`."""
    pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
    return [Candidate(pair["prompt"], tuple(pair["responses"]), tuple(pair["models"])) for pair in pairs]
