"""Scores of a validation's samples, by a reward of the stage or a judge of an evaluation."""

from __future__ import annotations

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.evaluation.base import Ask, SampleRequest, ValidationResults
from rlhf_lightning.types import RawRows

JUDGE = "judge"
"""Name under which an evaluation holds a judge of its own."""


def scores_of_responses(rows: RawRows, responses: list[str], reward: str, ask: Ask) -> list[float]:
    """Score one response per row; all ranks score their shard.

    Args:
        rows: with a prompt.
        responses: one per row.
        reward: name of a reward; `mean` is the training reward.
        ask: of the evaluation.
    """
    recorded = [{**row, "response": text} for row, text in zip(rows, responses, strict=True)]
    key = sample_key(reward)
    return [sample[key] for sample in ask(SampleRequest(recorded, rewards=(reward,)))]


def sample_scores(results: ValidationResults, score: str, has_judge: bool, ask: Ask) -> list[float]:
    """Return the score of every sample.

    Args:
        results: of a validation.
        score: key of the samples, `reward` or `reward/<name>`.
        has_judge: the evaluation has a judge of its own, which scores instead.
        ask: of the evaluation.

    Raises:
        UserError: the samples have no such key.
    """
    if has_judge:
        return scores_of_responses(results.rows, [sample["response"] for sample in results.samples], JUDGE, ask)
    keys = [key for key in (results.samples[0] if results.samples else {}) if key.startswith("reward")]
    if score not in keys:
        raise UserError(f"no sample has the score {score!r}; {nearest(score, keys)}")
    return [sample[score] for sample in results.samples]


def sample_key(reward: str) -> str:
    """Return the key of a reward's scores in samples.

    >>> sample_key("mean"), sample_key("true")
    ('reward', 'reward/true')
    """
    return "reward" if reward == "mean" else f"reward/{reward}"


def reward_name(key: str) -> str:
    """Return the name of the reward whose scores have a key.

    >>> reward_name("reward"), reward_name("reward/true")
    ('mean', 'true')
    """
    return "mean" if key == "reward" else key.removeprefix("reward/")
