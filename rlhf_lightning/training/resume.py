"""A checkpoint that was written within an optimiser step, whose gradients it does not hold, goes on at the beginning of it."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.rollouts.step_loader import REPLAY_STEP


def rewind_to_step_start(fit_loop: dict[str, Any], accumulate: int) -> None:
    """Change the state of Lightning's loops, where a step was not taken, to that before its first part; the loader's with it.

    Such are checkpoints of an exception, and those written between two parts: after so many minutes, or at a validation.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    interrupted = current["ready"] > current["processed"]
    if not interrupted and (current["processed"] % accumulate == 0 or progress["is_last_batch"]):
        return
    start = current["processed"] // accumulate * accumulate
    earlier = total["ready"] - current["ready"]
    for counts, done in ((current, start), (total, earlier + start)):
        counts.update(ready=done, started=done, processed=done, completed=done)
    progress["is_last_batch"] = False
    if start:  # as if written when the step before had just been taken, whose validation Lightning then takes as done
        current["completed"] -= 1
        total["completed"] -= 1
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    for loader in fit_loop["state_dict"].get("combined_loader") or []:
        loader[REPLAY_STEP] = True
