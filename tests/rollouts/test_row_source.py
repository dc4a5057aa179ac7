"""A source resumes the order of its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_lightning.data.modules import PromptData
from rlhf_lightning.errors import UserError
from rlhf_lightning.rollouts.row_source import RowSource, rows_of
from tests.rollouts.loaders import source


def test_a_source_resumes_its_order() -> None:
    torch.manual_seed(123)
    whole = [source_.next() for source_ in [source()] for _ in range(9)]
    before = torch.get_rng_state()
    stopped = source()
    first = [stopped.next() for _ in range(5)]
    resumed = source()
    resumed.load_state_dict(stopped.state_dict())
    assert first + [resumed.next() for _ in range(4)] == whole
    assert torch.equal(torch.get_rng_state(), before)  # the global random state is restored
    assert whole[:4] != whole[4:8]


def joined_source(join: int, stream: bool) -> RowSource:
    rows = [{"prompt": str(i)} for i in range(10)]
    loader: Any = DataLoader(rows, batch_size=2, shuffle=True, collate_fn=list)  # type: ignore[arg-type]
    if stream:
        data = PromptData(train=rows, validation_fraction=0, batch_size=2, steps_per_epoch=5)
        data.setup("fit")
        loader = data.train_dataloader()
    return RowSource(loader, seed=1, join=join)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("join", [2, 3, 7])
def test_joined_batches_are_consecutive_and_the_last_of_a_pass_may_be_fewer(join: int, stream: bool) -> None:
    single, joined = joined_source(1, stream), joined_source(join, stream)
    passes = [[single.next() for _ in range(5)] for _ in range(3)]
    groups = [batches[i : i + join] for batches in passes for i in range(0, 5, join)]
    expected = [[row for batch in group for row in batch] for group in groups]
    assert len(joined) * 3 == len(expected)
    assert [joined.next() for _ in expected] == expected
    for stop in range(len(expected) + 1):  # a state is resumed after any of them
        stopped, resumed = joined_source(join, stream), joined_source(join, stream)
        first = [stopped.next() for _ in range(stop)]
        resumed.load_state_dict(stopped.state_dict())
        assert first + [resumed.next() for _ in expected[stop:]] == expected


def test_a_source_that_is_restarted_begins_with_its_first_batch() -> None:
    for stream in (False, True):
        joined = joined_source(2, stream)
        first = [joined.next() for _ in range(4)]
        joined.restart()
        assert [joined.next() for _ in range(4)] == first


def test_a_loader_without_batches_or_length_is_named() -> None:
    with pytest.raises(UserError, match="has no batch"):
        RowSource([], seed=1).next()
    with pytest.raises(UserError, match="has no length"):
        len(RowSource(iter(["a"]), seed=1))


def test_a_state_of_another_kind_of_loader_is_refused() -> None:
    for stream in (False, True):
        with pytest.raises(UserError, match="another kind of train data loader"):
            joined_source(1, stream).load_state_dict(joined_source(1, not stream).state_dict())


@pytest.mark.parametrize(
    "batch", ["a text", {"prompt": "a", "answer": 1}, {"prompt": ["a", "b"], "answer": [1]}, [1], [{}], 3]
)
def test_a_batch_without_prompts_is_shown(batch: Any) -> None:
    with pytest.raises(UserError, match="a batch must be a list of rows"):
        rows_of(batch)


def test_rows_without_a_text_are_read_where_none_is_needed() -> None:
    assert rows_of([{"state": 1}], text=False) == [{"state": 1}]
    assert rows_of([{"messages": [{"role": "user", "content": "a"}]}]) == [
        {"messages": [{"role": "user", "content": "a"}]}
    ]
