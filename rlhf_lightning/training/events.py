"""Events of training that Lightning has no hook for, as hooks of its callbacks.

| hook of a callback | called |
| --- | --- |
| `on_rollout_start(trainer, stage)` | before a rollout is generated, or read from recorded pairs |
| `on_rollout_end(trainer, stage, rollout)` | after the algorithm prepared it, before the first step on it |

Every rank calls them. `rollout` is the `Batch` of this rank: tokens, masks, log-probabilities, rewards, advantages. A rank
without rows gets one whose `mask` is False everywhere. Weights may be sharded, and a hook must not call collective functions.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule

from rlhf_lightning.distributed import raise_on_all_ranks
from rlhf_lightning.errors import UserError


def call_callbacks(module: LightningModule, hook: str, *args: Any) -> None:
    """Call a hook of all callbacks that have it; an error on one rank is raised on all.

    Raises:
        UserError: a callback raised an error.
    """
    callbacks = [each for each in module.trainer.callbacks if callable(getattr(each, hook, None))]  # type: ignore[attr-defined]
    for callback in callbacks:
        raise_on_all_ranks(_call, callback, hook, module, args)


def _call(callback: Any, hook: str, module: LightningModule, args: tuple[Any, ...]) -> None:
    try:
        getattr(callback, hook)(module.trainer, module, *args)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{type(callback).__name__}.{hook} raised {type(error).__name__}: {error}") from error
