"""A full batch, a buffer of it, and a source of numbered rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from rlhf_lightning.rollouts.buffer import RolloutBuffer, batch_of
from rlhf_lightning.rollouts.row_source import RowSource
from rlhf_lightning.types import Batch


def full(rows: int = 12, width: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    starts = torch.randint(0, 3, (rows,), generator=generator)
    mask = torch.arange(width)[None] < lengths[:, None]
    return batch_of(
        {
            "tokens": torch.arange(rows)[:, None].expand(rows, 4 + width).clone(),
            "prompt_mask": torch.arange(4)[None] >= starts[:, None],
            "mask": mask,
            "groups": torch.arange(rows) // 2,
            "truncated": lengths == width,
            "logprobs": torch.rand(rows, width, generator=generator) * mask,
            "reference_logprobs": torch.rand(rows, width, generator=generator) * mask,
            "rewards": torch.rand(rows, generator=generator),
        }
    )


def buffer(batch: Batch | None = None, **options: Any) -> RolloutBuffer:
    given = {"rows_per_loss_group": 1, "epochs": 2, "minibatches": 3, "accumulate": 1, "seed": 7, **options}
    return RolloutBuffer(batch or full(), lambda part: part.mask.sum(), **given)


def source(rows: int = 10, batch: int = 3) -> RowSource:
    data: Any = [{"prompt": str(i)} for i in range(rows)]
    return RowSource(DataLoader(data, batch_size=batch, shuffle=True, collate_fn=list), seed=1)
