"""Answer the requests of evaluations: every rank generates or scores its shard of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.evaluation.attribution import attribute_score, check_attributable
from rlhf_lightning.evaluation.base import Sample, SampleRequest
from rlhf_lightning.evaluation.token_tables import token_tables
from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.rollouts.collector import ReferenceLogprobs
from rlhf_lightning.rollouts.decoding import ResponseDecoder
from rlhf_lightning.rollouts.responses import ResponseGenerator, columns_of
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Completions, RawRows

RESPONSES_AT_ONCE = 64
"""Responses that are generated and scored together."""


def answer(
    request: SampleRequest,
    rows: RawRows,
    responses: ResponseGenerator,
    rewards: Mapping[str, Reward],
    randomness: Randomness,
    reference: ReferenceLogprobs | None = None,
) -> list[list[Sample]]:
    """Generate or score on one rank.

    Args:
        request: its settings.
        rows: this rank's shard of the rows of the request.
        responses: generates with the present weights.
        rewards: name to reward, loaded.
        randomness: random numbers of `rows`.
        reference: for tables of tokens and likelihoods; None where the stage has none for generated text.

    Returns:
        The samples of each row.

    Raises:
        UserError: a row is wrong, or a reward failed.
    """
    recorded = [place for place, row in enumerate(rows) if row.get("response") is not None]
    open_rows = [place for place, row in enumerate(rows) if row.get("response") is None]
    samples: dict[int, list[Sample]] = {}

    def measured(completions: Completions) -> list[Sample]:
        found = _samples(completions, rewards)
        if request.token_tables:
            _add(found, "tokens", token_tables(completions, responses.policy, reference, responses.encoder))
        if request.reference_likelihood and reference is not None:
            _add_likelihood(found, completions, reference)
        if request.attribution_steps:
            _add(found, "attribution", _attributions(completions, rewards, request.attribution_steps))
        return found

    for places in _chunks(recorded, RESPONSES_AT_ONCE):
        completions = recorded_completions(
            responses.encoder, [rows[place] for place in places], responses.policy.device
        )
        samples |= zip(places, ([sample] for sample in measured(completions)), strict=True)
    copies = request.responses_per_prompt
    for places in _chunks(open_rows, max(1, RESPONSES_AT_ONCE // copies)):
        chunk = [rows[place] for place in places]
        found = measured(responses.generate(chunk, copies, randomness.of(places), request.temperature))
        samples |= {place: found[i * copies : (i + 1) * copies] for i, place in enumerate(places)}
    return [samples[place] for place in range(len(rows))]


def _chunks(places: list[int], size: int) -> Iterator[list[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def recorded_completions(encoder: Encoder, rows: RawRows, device: torch.device) -> Completions:
    """Encode rows with a `prompt` and a `response` as completions, which rewards and the policy read."""
    encoded = [encoder.encode(row["prompt"], row["response"]) for row in rows]
    pad = int(encoder.tokenizer.pad_token_id)
    batch = recorded_rows(
        [each.prompt for each in encoded],
        [each.response for each in encoded],
        list(range(len(rows))),
        encoder.stop_tokens,
        pad,
        [each.mask for each in encoded],
    ).to(device)
    width = batch.prompt_mask.shape[1]
    decoder = ResponseDecoder(encoder.tokenizer, encoder.stop_tokens)
    tensors: dict[str, Any] = batch.tensors()
    return Completions(
        **tensors,
        prompts=encoder.decode(batch.tokens[:, :width], batch.prompt_mask, special=True),
        responses=decoder(batch),
        decoder=decoder,
        columns=columns_of([{name: value for name, value in row.items() if name != "response"} for row in rows]),
    )


def _samples(completions: Completions, rewards: Mapping[str, Reward]) -> list[Sample]:
    texts = zip(completions.prompts, completions.responses, strict=True)
    samples: list[Sample] = [{"prompt": prompt, "response": response} for prompt, response in texts]
    for name, reward in rewards.items():
        for sample, value in zip(samples, score(reward, completions).tolist(), strict=True):
            sample["reward" if name == "mean" else f"reward/{name}"] = value
    return samples


def _add(samples: list[Sample], name: str, values: list[Any]) -> None:
    for sample, value in zip(samples, values, strict=True):
        sample[name] = value


def _add_likelihood(samples: list[Sample], completions: Completions, reference: ReferenceLogprobs) -> None:
    logprobs = reference.logprobs(completions.tokens, completions.prompt_mask, completions.mask, 1.0)
    _add(samples, "reference_logprob", logprobs.sum(-1).tolist())
    _add(samples, "reference_tokens", completions.mask.sum(-1).tolist())


def _attributions(completions: Completions, rewards: Mapping[str, Reward], steps: int) -> list[list[dict[str, Any]]]:
    reward = next(iter(check_attributable(rewards).values()))
    prompts = completions.columns.get("prompt", completions.prompts)
    triples = zip(prompts, completions.responses, completions.truncated.tolist(), strict=True)
    return [attribute_score(reward, *triple, steps) for triple in triples]


def chosen_rewards(
    request: SampleRequest, stage: Mapping[str, Reward], own: Mapping[str, Reward], device: Any
) -> dict[str, Reward]:
    """Find the rewards of a request, and load those of the evaluation.

    Raises:
        UserError: there is no reward of a name.
    """
    names = list(stage) if request.rewards is None else list(request.rewards)
    if unknown := [name for name in names if name not in stage and name not in own]:
        raise UserError(f"no reward is called {unknown[0]!r}; {nearest(unknown[0], [*stage, *own])}")
    for name in names:
        if name in own:
            own[name].load(device)
    return {name: own[name] if name in own else stage[name] for name in names}


def checked_request(request: object) -> SampleRequest:
    """Check a request on rank zero, before other ranks get it.

    Raises:
        UserError: it is no request, or a field has a wrong value.
    """
    if not isinstance(request, SampleRequest):
        raise UserError(f"ask got {request!r:.60}; pass a SampleRequest")
    if request.responses_per_prompt < 1:
        raise UserError(f"responses_per_prompt is {request.responses_per_prompt}; set it to at least 1")
    if missing := [place for place, row in enumerate(request.rows) if "prompt" not in row]:
        raise UserError(f"row {missing[0]} of a request has no prompt (columns: {', '.join(request.rows[missing[0]])})")
    return replace(request, rows=list(request.rows))
