"""Generating a rollout in chunks, and scoring each chunk while the next is generated."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.functional.advantages import last_token
from rlhf_lightning.rewards.base import Reward, Scores, reward_scores
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Completions, RawRows, Rows


def scores_of(reward: Reward | None, completions: Completions) -> Scores:
    """Score completions; without a reward return the scores that the generator brought, or zeros.

    The scores that the generator brought were given for the tokens so far, also where a response was truncated: they are step
    rewards.
    """
    if reward is not None:
        return reward_scores(reward, completions)
    if completions.rewards is None:
        return Scores(torch.zeros(len(completions)), None, {})
    rewards, steps = completions.rewards, completions.step_rewards
    steps = last_token(completions.mask.to(rewards.device)) * rewards[:, None] if steps is None else steps
    return Scores(rewards, steps, {})


def joined_scores(chunks: list[Scores]) -> Scores:
    """Join the scores of chunks; a component that a chunk does not have is unknown there, and steps give 0."""
    names = dict.fromkeys(name for chunk in chunks for name in chunk.components)
    components = {
        name: [value for chunk in chunks for value in chunk.components.get(name, [None] * len(chunk.rewards))]
        for name in names
    }
    width = max((chunk.step_rewards.shape[1] for chunk in chunks if chunk.step_rewards is not None), default=0)
    steps = [
        torch.zeros(len(chunk.rewards), width) if chunk.step_rewards is None else chunk.step_rewards for chunk in chunks
    ]
    return Scores(torch.cat([chunk.rewards for chunk in chunks]), torch.cat(steps) if width else None, components)


class ScoringThread:
    """Scores chunks one after the other in a thread beside the generating one.

    The thread is a daemon: a reward that hangs does not keep the process from ending.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward, self.results = reward, list[Future[Scores]]()
        self.queue: SimpleQueue[tuple[Completions, Future[Scores]] | None] = SimpleQueue()
        Thread(target=self._run, daemon=True).start()

    def add(self, completions: Completions) -> None:
        """Add a chunk, to be scored after those before it."""
        result: Future[Scores] = Future()
        self.results.append(result)
        self.queue.put((completions, result))

    def close(self) -> None:
        """End the thread after the last chunk."""
        self.queue.put(None)

    def scores(self) -> Scores:
        """Wait for the scores of all chunks.

        Raises:
            Exception: the first error of a chunk.
        """
        return joined_scores([result.result() for result in self.results])

    def _run(self) -> None:
        while (item := self.queue.get()) is not None:
            completions, result = item
            try:
                with torch.no_grad():
                    result.set_result(scores_of(self.reward, completions))
            except BaseException as error:  # `scores` raises it
                result.set_exception(error)


class ChunkScores:
    """Scores the chunks of a rollout: several in a thread while the next is generated, a single one when scores are requested.

    Args:
        reward: with several chunks another thread calls it; it must allow that (`scores_while_generating`). None scores nothing.
        chunks: number of chunks.
    """

    def __init__(self, reward: Reward | None, chunks: int) -> None:
        self.reward, self.chunks = reward, list[Completions]()
        self.thread = ScoringThread(reward) if chunks > 1 and reward is not None else None

    def __enter__(self) -> ChunkScores:
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread is not None:
            self.thread.close()

    def add(self, completions: Completions) -> None:
        """Add a chunk, after those before it."""
        self.chunks.append(completions)
        if self.thread is not None:
            self.thread.add(completions)

    def completions(self) -> Completions:
        """Return all chunks as one."""
        return self.chunks[0] if len(self.chunks) == 1 else concatenate(self.chunks)

    def scores(self) -> Scores:
        """Wait for the scores of all chunks.

        Raises:
            Exception: the first error of a chunk.
        """
        if self.thread is not None:
            return self.thread.scores()
        return scores_of(self.reward, self.completions())


def split_evenly(rows: RawRows, randomness: Randomness, chunks: int) -> list[tuple[RawRows, Randomness]]:
    """Split rows and their random numbers into at most `chunks` consecutive chunks of about as many rows, none of them empty."""
    splits = [split.tolist() for split in torch.arange(len(rows)).tensor_split(chunks) if len(split)]
    return [([rows[place] for place in split], randomness.of(split)) for split in splits]


def concatenate(chunks: list[Completions]) -> Completions:
    """Join completions into one batch; prompts are padded to the longest."""
    return replace(
        chunks[0],
        **joined_tensors(list(chunks)),
        prompts=[x for chunk in chunks for x in chunk.prompts],
        responses=[x for chunk in chunks for x in chunk.responses],
        columns={name: [x for chunk in chunks for x in chunk.columns[name]] for name in chunks[0].columns},
        ends=None if chunks[0].ends is None else [ends for chunk in chunks for ends in chunk.ends or []],
        steps=None if chunks[0].steps is None else [steps for chunk in chunks for steps in chunk.steps or []],
    )


def joined_tensors(chunks: list[Rows]) -> dict[str, Any]:
    """Return the tensors of several chunks of rows as one batch; see `concatenate`."""
    width = max(chunk.prompt_mask.shape[1] for chunk in chunks)
    tensors: list[dict[str, Tensor]] = []
    for chunk in chunks:
        left = (width - chunk.prompt_mask.shape[1], 0)
        padded = {"tokens": pad(chunk.tokens, left), "prompt_mask": pad(chunk.prompt_mask, left)}
        tensors.append({**chunk.tensors(), **padded})
    return {name: torch.cat([chunk[name] for chunk in tensors]) for name in tensors[0]}
