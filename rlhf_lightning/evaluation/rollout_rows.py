"""The rows of a training rollout as plain values."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import row_mean
from rlhf_lightning.types import Batch


def rollout_rows(stage: Any, rollout: Batch, count: int) -> list[dict[str, Any]]:
    """Decode the first rows of a rollout that count.

    Args:
        stage: has the tokenizer, and a collector with the names of the components.
        rollout: of this rank, as `on_rollout_end` gets it.
        count: rows to return, at most.

    Returns:
        Per row `prompt`, `response`, `reward`, `reward/<component>` (None where the reward gave none), `kl` and `advantage` (both
        the mean over its tokens).
    """
    valid = rollout.mask.any(-1).nonzero()[:, 0][:count]
    rows, width = rollout.rows(valid), rollout.prompt_mask.shape[1]
    encoder = stage.text.encoder
    columns: dict[str, list[Any]] = {
        "prompt": encoder.decode(rows.tokens[:, :width], rows.prompt_mask, special=True),
        "response": encoder.decode(rows.tokens[:, width:], rows.mask),
        "reward": rows.rewards.tolist(),
    }
    if rows.components is not None:
        names = [f"reward/{name}" for name in stage.collector.component_names]
        scores = [[None if value != value else value for value in column] for column in rows.components.T.tolist()]
        columns |= dict(zip(names, scores, strict=True))
    if rows.reference_logprobs is not None:
        columns["kl"] = row_mean(kl_estimate(rows.logprobs, rows.reference_logprobs), rows.mask).tolist()
    if rows.advantages is not None:
        columns["advantage"] = row_mean(rows.advantages, rows.mask).tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
