"""Dynamic sampling: further prompts in place of those whose responses teach nothing (Yu et al. 2025, DAPO, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_gather, interleave_shards, rank, world_size
from rlhf_lightning.errors import UserError
from rlhf_lightning.rollouts.scored import Scored, join

Teaches = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""`Algorithm.teaches`: rewards [B], groups [B] and valid rows [B] → bool [B], or None to keep every row."""


def teaching_only(
    first: Scored, request: Callable[[], Scored], teaches: Teaches, max_refills: int
) -> tuple[Scored, dict[str, float]]:
    """Keep the prompts whose responses teach something, and request further ones until there are as many as in `first`.

    The prompts that are kept are the first ones in global order, so they depend on no number of ranks. What is still missing
    after `max_refills` requests makes the rollout smaller. Every rank must call this function.

    Args:
        first: responses to this rank's shard of the global batch.
        request: generates and scores the shard of the next global batch.
        teaches: decides about rows; a prompt is kept with all of its responses if one of its rows teaches.
        max_refills: further requests.

    Returns:
        The kept rows, and metrics. Without a prompt on this rank: one prompt whose rows have an empty mask.

    Raises:
        UserError: no prompt of any request teaches, though some response has a score.
    """
    marked = _marked(first, teaches)
    if marked is None:
        return first, {}
    wanted = sum(all_gather(len(marked) if first.statistics.responses else 0))
    requests, kept, prompts = [first], list[Scored](), 0
    while marked is not None:
        chosen, total = _first_in_global_order(marked, wanted - prompts)
        prompts += total
        if chosen.any():
            kept.append(requests[-1].rows(chosen.to(first.groups.device)[_group_index(requests[-1])]))
        if prompts >= wanted or len(requests) > max_refills:
            break
        requests.append(request())
        marked = _marked(requests[-1], teaches)
    statistics = sum((each.statistics for each in requests[1:]), first.statistics)
    if not prompts and any(all_gather(statistics.unscored < statistics.responses)):
        raise UserError(
            f"the algorithm learns nothing from any prompt of a rollout of {wanted}, in {len(requests)} requests (as where all "
            "responses to a prompt have the same score): set model.generation.temperature or responses_per_prompt higher, or use "
            "a reward that tells responses apart"
        )
    responses = sum(all_gather(statistics.responses))
    metrics = {"rollout/prompts": prompts, "rollout/requests": len(requests), "rollout/responses": responses}
    rows = join(kept) if kept else _emptied(first)
    return replace(rows, statistics=statistics), {name: float(value) for name, value in metrics.items()}


def _group_index(scored: Scored) -> Tensor:
    """Return int64 [B]: the place of each row's prompt among the prompts of this rank."""
    return torch.unique(scored.groups, return_inverse=True)[1]


def _marked(scored: Scored, teaches: Teaches) -> Tensor | None:
    """Return bool [G] on the CPU, whether one of the rows of each of this rank's prompts teaches; None where all are kept."""
    valid = scored.mask.any(-1)
    rows = teaches(scored.rewards, scored.groups, valid)
    if rows is None:
        return None
    index = _group_index(scored)
    counts = torch.zeros(int(index.max()) + 1, dtype=torch.long, device=index.device)
    return (counts.index_add_(0, index, (rows & valid).long()) > 0).cpu()


def _first_in_global_order(marked: Tensor, wanted: int) -> tuple[Tensor, int]:
    """Return bool [G], which of this rank's prompts are among the first `wanted` marked ones of all ranks, and their number."""
    everywhere = torch.tensor(interleave_shards(all_gather(marked.tolist())))
    taken = everywhere & (everywhere.long().cumsum(0) <= wanted)
    return taken[rank() :: world_size()], int(taken.sum())


def _emptied(scored: Scored) -> Scored:
    index = _group_index(scored)
    return scored.rows(index == index[0]).without_rows()
