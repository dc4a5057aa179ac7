"""Writing a rollout in parts, each of which is scored while the next is written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.types import Completions, RawRows

Scores = tuple[Tensor, dict[str, list[float | None]]]
"""float32 [B], and the scores that each was made of by name."""


def scored(reward: Reward, completions: Completions) -> Scores:
    """The scores, and the parts that the reward tells of."""
    return score(reward, completions), reward.components()


class ScoringThread:
    """Scores one part after the other, in their order, in a thread of its own.

    The thread is a daemon: a reward that hangs keeps no process from ending.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward, self.parts, self.answers = reward, list[Completions](), list[Future[Scores]]()
        self.waiting: SimpleQueue[tuple[Completions, Future[Scores]] | None] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()

    def add(self, completions: Completions) -> None:
        """Have a part scored as soon as those before it are."""
        answer: Future[Scores] = Future()
        self.parts.append(completions)
        self.answers.append(answer)
        self.waiting.put((completions, answer))

    def close(self) -> None:
        """No more parts will come."""
        self.waiting.put(None)

    def scores(self) -> Scores:
        """Those of all parts, once they are there.

        Raises:
            Exception: the first that scoring raised.
        """
        found = [answer.result() for answer in self.answers]
        named = {name: [x for _, parts in found for x in parts[name]] for name in found[0][1]}
        return torch.cat([scores for scores, _ in found]), named

    def _work(self) -> None:
        while (given := self.waiting.get()) is not None:
            completions, answer = given
            try:
                with torch.no_grad():
                    answer.set_result(scored(self.reward, completions))
            except BaseException as error:  # raised again by who waits
                answer.set_exception(error)


def generate_and_score(
    write: Callable[[RawRows], Completions], rows: RawRows, reward: Reward, parts: int
) -> tuple[Completions, Callable[[], Scores]]:
    """All completions, as soon as they are written, and what waits for their scores.

    Args:
        write: rows → completions.
        rows: are cut into `parts` of about as many; one alone is scored in this thread, when its scores are asked for.
        reward: may be asked `scores_while_generating` if there are several.
    """
    micro_batches = [
        [rows[i] for i in micro_batch]
        for micro_batch in torch.arange(len(rows)).tensor_split(parts)
        if len(micro_batch)
    ]
    if len(micro_batches) == 1:
        completions = write(rows)
        return completions, lambda: scored(reward, completions)
    beside = ScoringThread(reward)
    try:
        for micro_batch in micro_batches:
            beside.add(write(micro_batch))
    finally:
        beside.close()
    return concatenate(beside.parts), beside.scores


def concatenate(parts: list[Completions]) -> Completions:
    """One batch of several, whose prompts are padded to the longest; groups are numbered on."""
    width = max(part.prompt_mask.shape[1] for part in parts)
    tensors: list[dict[str, Tensor]] = []
    groups = 0
    for part in parts:
        left = (width - part.prompt_mask.shape[1], 0)
        given = part.tensors()
        tensors.append(
            {
                **given,
                "tokens": pad(part.tokens, left),
                "prompt_mask": pad(part.prompt_mask, left),
                "groups": part.groups + groups,
            }
        )
        groups += int(part.groups.max()) + 1
    cat = {name: torch.cat([given[name] for given in tensors]) for name in tensors[0]}
    return replace(
        parts[0],
        **cat,
        prompts=[x for part in parts for x in part.prompts],
        responses=[x for part in parts for x in part.responses],
        columns={name: [x for part in parts for x in part.columns[name]] for name in parts[0].columns},
    )
