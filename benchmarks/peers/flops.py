"""Floating-point operations of an update, phase by phase, from the formula of a Llama.

A forward pass of n tokens that attend to c others each on average costs n (2 W + 4 L H c), with W the weights of the layers, L
their number and H the width; the head costs 2 V H for every response token, a backward pass twice its forward pass. Nothing
that is computed a second time (a chunk of the head in the backward pass) counts, and neither does the optimizer.

Two counts: `needed`, each prompt once however many responses it has, and no padding; and `rows`, each response in a row of its
own behind its prompt, as wide as the longest of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from peers.work import Size, Work


@dataclass(frozen=True)
class Tokens:
    """What passes the model: tokens of prompts and of responses, and how many others each attends to, on average."""

    prompt: float
    response: float
    prompt_context: float
    response_context: float


def tokens_of(work: Work, needed: bool, lengths: dict[str, float], rows: float) -> Tokens:
    """Those of `rows` responses of an update; `lengths` are what `measure.py` noted of texts as long as they are."""
    if not work.length:
        width = lengths["width"]
        mean = lengths["squares"] / lengths["needed"] if needed else width
        count = lengths["once"] if needed else rows * width
        return Tokens(0, count, 0, mean / 2)
    prompts = rows / work.responses if needed and work.kind not in ("ppo", "ppo-separate") else rows
    return Tokens(prompts * work.prompt, rows * work.length, work.prompt / 2, work.prompt + work.length / 2)


def backbone(size: Size, tokens: Tokens) -> float:
    """Of a forward pass without the head."""
    attended = tokens.prompt * tokens.prompt_context + tokens.response * tokens.response_context
    return 2 * size.backbone * (tokens.prompt + tokens.response) + 4 * size.layers * size.hidden * attended


def forward(size: Size, tokens: Tokens) -> float:
    return backbone(size, tokens) + 2 * size.vocabulary * size.hidden * tokens.response


def phases(work: Work, size: Size, needed: bool, lengths: dict[str, float], scored_by_model: bool) -> dict[str, float]:
    """Operations of one update in `generate`, `score`, `reference` (the critic's pass over the rollout with it), `update`."""
    generated = tokens_of(work, needed, lengths, work.rows)
    trained = generated
    if work.kind == "online-dpo":  # the best and the worst response of a prompt
        trained = tokens_of(work, needed, lengths, 2 * work.batch)
        if needed:
            trained = Tokens(generated.prompt, trained.response, generated.prompt_context, generated.response_context)
    online = work.kind not in ("dpo", "reward", "sft")
    separate = backbone(size, generated) if work.kind == "ppo-separate" else 0.0
    shared = backbone(size, generated) if work.kind == "ppo" else 0.0
    head = 0.0 if work.kind == "reward" else forward(size, trained) - backbone(size, trained)
    return {
        "generate": forward(size, generated) if online else 0.0,
        "score": backbone(size, generated) if scored_by_model and work.kind.startswith("ppo") else 0.0,
        "reference": (online or work.kind == "dpo") * forward(size, generated) + separate + shared,
        "update": 3 * work.epochs * (backbone(size, trained) + head + separate),
    }


def generation_bytes(work: Work, size: Size, width: int) -> float:
    """Bytes that must be read to write the responses: all weights once a token of the longest row, and the keys and values."""
    weights = (size.backbone + size.vocabulary * size.hidden) * width
    attended = work.rows * (work.prompt + work.length / 2)
    return work.length * (weights + attended * 2 * size.layers * size.hidden * width)
