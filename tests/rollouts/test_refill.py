"""Dynamic sampling keeps whole prompts that teach something, in global order, and asks for further ones up to a limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollouts import refill
from rlhf_lightning.rollouts.refill import teaching_only
from rlhf_lightning.rollouts.scored import RequestStatistics, Scored


def scored(prompts: list[int], teaching: set[int], copies: int = 2, width: int = 1) -> Scored:
    """Responses to numbered prompts, whose token is the number; the scores of a teaching prompt differ."""
    rows = [prompt for prompt in prompts for _ in range(copies)]
    rewards = [float(prompt in teaching and copy == 0) for prompt in prompts for copy in range(copies)]
    return Scored(
        tokens=torch.tensor([[prompt] * (width + 1) for prompt in rows]),
        prompt_mask=torch.ones(len(rows), width, dtype=torch.bool),
        mask=torch.ones(len(rows), 1, dtype=torch.bool),
        groups=torch.tensor(prompts).repeat_interleave(copies),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        rewards=torch.tensor(rewards),
        statistics=RequestStatistics(1.0, 2.0, len(rows), 3 * len(rows), 1),
    )


def spread(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Mark every row of a group whose valid rewards differ."""
    marked = torch.zeros_like(valid)
    for group in groups.unique():
        own = (groups == group) & valid
        marked |= own & (rewards[own].numel() > 0 and float(rewards[own].max() - rewards[own].min()) > 0)
    return marked


def kept(result: Scored) -> list[int]:
    return result.tokens[:, -1].tolist()


def test_further_prompts_replace_those_that_teach_nothing() -> None:
    later = iter([scored([4, 5, 6, 7], {5}, width=3), scored([8, 9, 10, 11], {8, 9, 10})])
    result, metrics = teaching_only(scored([0, 1, 2, 3], {1}), lambda: next(later), spread, 5)
    assert kept(result) == [1, 1, 5, 5, 8, 8, 9, 9]  # 10 teaches too, and is one more than there were
    assert result.groups.unique(return_counts=True)[1].tolist() == [2] * 4
    assert result.rewards.tolist() == [1.0, 0.0] * 4
    assert result.prompt_mask.sum(-1).tolist() == [1, 1, 3, 3, 1, 1, 1, 1]
    assert metrics == {"rollout/prompts": 4, "rollout/requests": 3, "rollout/responses": 24}
    assert result.statistics == RequestStatistics(3.0, 6.0, 24, 72, 3)


def test_requests_may_name_other_components() -> None:
    first = replace(scored([0, 1], {0}), components=torch.arange(4.0)[:, None], names=("a",))
    later = replace(scored([2, 3], {3}), components=torch.arange(8.0).view(4, 2), names=("b", "a"))
    result, _ = teaching_only(first, lambda: later, spread, 1)
    assert result.names == ("a", "b")
    assert result.components is not None
    assert result.components.nan_to_num(-1).tolist() == [[0, -1], [1, -1], [5, 4], [7, 6]]


def test_a_limit_makes_the_rollout_smaller() -> None:
    result, metrics = teaching_only(scored([0, 1, 2], {2}), lambda: scored([3, 4, 5], {3}), spread, 1)
    assert kept(result) == [2, 2, 3, 3]
    assert metrics["rollout/requests"] == 2


def test_a_rollout_that_teaches_nothing_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"learns nothing from any prompt of a rollout of 3, in 4 requests .*set model\.gen"
    ):
        teaching_only(scored([0, 1, 2], set()), lambda: scored([3, 4, 5], set()), spread, 3)


def test_a_rollout_without_any_score_is_left_to_the_caller() -> None:
    def unscored() -> Scored:
        nothing = scored([3, 4], set())
        return replace(nothing, mask=torch.zeros_like(nothing.mask), statistics=RequestStatistics(0.0, 0.0, 4, 12, 4))

    result, _ = teaching_only(unscored(), unscored, spread, 1)
    assert not result.mask.any()
    assert result.statistics.unscored == result.statistics.responses == 8


def test_no_question_changes_nothing() -> None:
    def forbidden() -> Scored:
        raise AssertionError("a request")

    first = scored([0, 1], set())
    assert teaching_only(first, forbidden, lambda *_: None, 9) == (first, {})


def _exchange(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, answers: Iterator[list[Any]]) -> None:
    monkeypatch.setattr(refill, "all_gather", lambda _: next(answers))
    monkeypatch.setattr(refill, "rank", lambda: rank)
    monkeypatch.setattr(refill, "world_size", lambda: world)


@pytest.mark.parametrize(("rank", "expected"), [(0, [2, 2, 6, 6]), (1, [3, 3])])
def test_two_ranks_keep_what_one_keeps(monkeypatch: pytest.MonkeyPatch, rank: int, expected: list[int]) -> None:
    """Of the prompts 0…3 teach 2 and 3, of 4…7 teach 6 and 7, and three prompts are wanted: 2, 3 and 6."""
    answers = [[2, 1], [[False, True], [False, True]], [[False, True], [False, True]], [8, 6]]
    _exchange(monkeypatch, rank, 2, iter(answers))
    shards = [[[0, 2], [4, 6]], [[1, 3], [5, 7]]][rank]
    result, metrics = teaching_only(scored(shards[0], {2, 3}), lambda: scored(shards[1], {6, 7}), spread, 9)
    assert kept(result) == expected
    assert metrics == {"rollout/prompts": 3, "rollout/requests": 2, "rollout/responses": 14}


def test_a_rank_without_a_kept_prompt_has_rows_of_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    _exchange(monkeypatch, 1, 2, iter([[1, 1], [[True], [False]], [2, 2]]))
    result, _ = teaching_only(scored([1], set()), lambda: scored([1], set()), spread, 0)
    assert kept(result) == [1, 1]
    assert not result.mask.any()


def test_rows_that_do_not_count_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[Any] = []
    monkeypatch.setattr(refill, "all_gather", lambda value: (gathered.append(value), [value, 1])[1])
    with pytest.raises(TypeError):  # the second answer is no list of verdicts; the first question is what counts here
        teaching_only(scored([0], {0}).without_rows(), lambda: scored([0], set()), spread, 0)
    assert gathered[0] == 0
