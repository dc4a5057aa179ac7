"""The library on the models and rows of `recipe.py`, and the comparison with what TRL gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from parity.recipe import gradient_of, language_model
from torch import Tensor, nn

from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.types import Rollout, Rows

STOP, PAD = 2, 0


def recorded(version: str) -> dict[str, Any]:
    """What `trl_numbers.py` wrote with a TRL."""
    return json.loads((Path(__file__).parent / f"trl-{version}.json").read_text())


def same(found: Any, wanted: Any) -> None:
    """Equal to 1e-5 in float32."""
    found, wanted = (torch.as_tensor(x).detach().float() for x in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def same_gradient(model: nn.Module, wanted: dict[str, Any]) -> None:
    """The gradient of `model` has the recorded norm and entries."""
    found = gradient_of(model)
    same(found["norm"], wanted["norm"])
    assert found["entries"].keys() == wanted["entries"].keys()
    for name, entries in wanted["entries"].items():
        same(found["entries"][name], entries)


def rows_of(prompts: list[list[int]], responses: list[list[list[int]]]) -> Rows:
    """Every response to each prompt, in groups."""
    repeated = [prompt for prompt, generated in zip(prompts, responses, strict=True) for _ in generated]
    groups = [i for i, generated in enumerate(responses) for _ in generated]
    return recorded_rows(repeated, [ids for generated in responses for ids in generated], groups, [STOP], PAD)


def logprobs_under(role: str, rows: Rows, temperature: float = 1.0) -> Tensor:
    """float32 [B, T] of the role's model."""
    with torch.no_grad():
        return Policy(language_model(role), temperature=temperature)(rows).logprobs


def rollout_of(rows: Rows, response_generator: str, scores: list[float | None], temperature: float = 1.0) -> Rollout:
    """The rollout of a role's model; a row without a score counts for nothing."""
    rollout = Rollout(
        **rows.tensors(),
        logprobs=logprobs_under(response_generator, rows, temperature),
        reference_logprobs=logprobs_under("reference", rows, temperature),
        rewards=torch.tensor([0.0 if score is None else score for score in scores]),
        values=None,
    )
    rollout.mask.logical_and_(torch.tensor([score is not None for score in scores])[:, None])
    return rollout
