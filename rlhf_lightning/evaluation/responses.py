"""Responses of several models to the same prompts, generated again alike after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models import loading
from rlhf_lightning.models.encoding import Encoder, Text
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, resolve_path
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness

Row = dict[str, Any]


@dataclass(frozen=True)
class PromptResponses:
    """The responses of one model to one prompt."""

    row: int
    """Index of the prompt."""
    responses: list[str]


def generate_responses(
    model: ModelConfig,
    rows: Sequence[Row],
    responses_per_prompt: int,
    generation: Generator,
    seed: int = 0,
    batch_size: int = 32,
    known: Collection[int] = (),
) -> Iterator[list[PromptResponses]]:
    """Generate with one model, a batch of prompts at a time.

    The random numbers of a batch depend on the seed, the model's name and the batch's prompts alone. A second call with the
    same arguments therefore generates the same, and may skip what is known.

    Args:
        model: a folder or a hub name.
        rows: each with a `prompt`, text or messages. A prompt that is too long for the model loses its beginning.
        responses_per_prompt: how many responses each prompt gets.
        generation: how to sample.
        seed: of the sampling.
        batch_size: prompts of a batch.
        known: indices of prompts whose responses are not needed; a batch of none but these is not generated. The weights are
            loaded only if there is another.

    Yields:
        The responses to a batch's prompts that are not known.

    Raises:
        UserError: the model cannot be loaded, or its context has no room for a response.
    """
    batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    needed = [batch for batch in batches if any(row not in known for row in batch)]
    if not needed:
        return
    encoder = load_encoder(model, generation)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    responder = ResponseGenerator(Policy(load_causal_lm(model)).to(device).eval(), generation, encoder)
    for batch in needed:
        prompts = [rows[row] for row in batch]
        of_batch = _seed(seed, model, [row["prompt"] for row in prompts])
        randomness = Randomness(of_batch, 0, tuple(range(len(prompts))))
        texts = responder.generate(prompts, responses_per_prompt, randomness).responses
        yield [
            PromptResponses(row, texts[place * responses_per_prompt :][:responses_per_prompt])
            for place, row in enumerate(batch)
            if row not in known
        ]


def load_encoder(model: ModelConfig, generation: Generator) -> Encoder:
    """Load the tokenizer and read the config, without weights: whatever is wrong with a model's name is found here.

    Raises:
        UserError: there is no such model, or its context has no room for a response.
    """
    encoder = loading.load_encoder(model)
    return replace(encoder, max_prompt_length=encoder.room(generation.max_new_tokens))


def fingerprint(model: ModelConfig) -> str:
    """Return a text that changes when a model's folder is overwritten with another; empty for a hub name."""
    folder = Path(resolve_path(model.name_or_path or ""))
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _seed(seed: int, model: ModelConfig, prompts: Sequence[Text]) -> int:
    text = json.dumps([seed, model.name_or_path, list(prompts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
