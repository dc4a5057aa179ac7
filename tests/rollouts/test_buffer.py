"""The rollout buffer: order, loss groups, micro-batches and resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_lightning.models.micro_batches import trim
from rlhf_lightning.types import Batch
from tests.rollouts.loaders import buffer, full


@pytest.mark.parametrize("accumulate", [1, 2, 4, 5])  # the last has a micro-batch without a row
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(accumulate: int) -> None:
    def gradients(micro_batches: int) -> list[torch.Tensor]:
        found, scale = [], torch.ones(12, requires_grad=True)
        for index, micro_batch in enumerate(buffer(accumulate=micro_batches)):
            row = micro_batch.tokens[:, 0]
            loss = (scale[row][:, None] * micro_batch.logprobs * micro_batch.mask).sum() / micro_batch.weight
            loss.backward()
            if (index + 1) % micro_batches == 0:
                assert scale.grad is not None
                found.append(scale.grad.clone())
                scale.grad = None
        return found

    for one, other in zip(gradients(1), gradients(accumulate), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_each_epoch_has_every_row_once_in_another_order() -> None:
    rows = [micro_batch.tokens[:, 0].tolist() for micro_batch in buffer()]
    first, second = ([row for micro_batch in half for row in micro_batch] for half in (rows[:3], rows[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_responses_to_a_prompt_are_in_one_step_of_each_epoch() -> None:
    batch = replace(full(24), groups=torch.arange(24) // 4)
    micro_batches = list(buffer(batch))
    assert [len(micro_batch) for micro_batch in micro_batches] == [8] * 6
    for micro_batch in micro_batches:
        assert micro_batch.groups.unique(return_counts=True)[1].tolist() == [4, 4]
    first, second = (
        torch.cat([micro_batch.groups for micro_batch in half]).tolist()
        for half in (micro_batches[:3], micro_batches[3:])
    )
    assert first != second
    within = [
        torch.cat([micro_batch.tokens[:, 0] for micro_batch in half]).view(6, 4) % 4
        for half in (micro_batches[:3], micro_batches[3:])
    ]
    assert all(len({tuple(row) for row in rows.tolist()}) > 1 for rows in within)


def test_loss_groups_stay_together_and_empty_ones_are_skipped() -> None:
    batch = full()
    batch.mask[4:6] = False
    micro_batches = list(buffer(batch, rows_per_loss_group=2, epochs=1))
    rows = [row for micro_batch in micro_batches for row in micro_batch.tokens[:, 0].tolist()]
    assert all(rows[i] % 2 == 0 and rows[i + 1] == rows[i] + 1 for i in range(0, len(rows), 2))
    assert sorted(rows) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_micro_batches_are_balanced_by_tokens_and_keep_the_responses_to_a_prompt_together() -> None:
    lengths = torch.tensor([40, 1, 2, 3, 12, 13, 9, 1, 8, 8, 1, 1, 5, 5, 2, 2])
    batch = full(16, 40)
    batch.mask[:] = torch.arange(40)[None] < lengths[:, None]
    batch.prompt_mask[:] = True
    options: Any = {"epochs": 1, "minibatches": 1}
    micro_batches = list(buffer(batch, **options, accumulate=3))
    assert sorted(row for micro_batch in micro_batches for row in micro_batch.tokens[:, 0].tolist()) == list(range(16))
    # eight prompts of 4 tokens with two responses each: the largest goes first, each to the micro-batch with the fewest tokens
    assert sorted(
        int(micro_batch.mask.sum()) + 4 * len(micro_batch.groups.unique()) for micro_batch in micro_batches
    ) == [45, 49, 51]
    for micro_batch in micro_batches:
        assert all(int((micro_batch.groups == group).sum()) == 2 for group in micro_batch.groups.unique())
    # with fewer prompts than micro-batches, responses are split
    several = [len(micro_batch) for micro_batch in buffer(batch, **options, accumulate=12)]
    assert len(several) == 12
    assert min(several) == 1
    one = replace(batch, groups=torch.zeros_like(batch.groups))
    halves = list(buffer(one, **options, accumulate=2))
    assert sorted(int(micro_batch.mask.sum()) + 4 * len(micro_batch) for micro_batch in halves) == [88, 89]


def test_empty_masks_do_not_change_the_number_of_micro_batches() -> None:
    batch = full()
    batch.mask[:] = False
    micro_batches = list(buffer(batch, accumulate=2))
    assert len(micro_batches) == len(buffer(accumulate=2)) == 12
    assert not any(micro_batch.mask.any() for micro_batch in micro_batches)
    assert all(float(micro_batch.weight) == 1.0 for micro_batch in micro_batches)


def test_trimming_removes_padding_only() -> None:
    batch = replace(full().rows(torch.tensor([0, 1])), components=torch.ones(2, 6))
    cut = trim(batch)
    assert cut.components is not None
    assert cut.components.shape == (2, 6)
    assert torch.equal(cut.prompt_mask.sum(-1), batch.prompt_mask.sum(-1))
    assert torch.equal(cut.mask.sum(-1), batch.mask.sum(-1))
    assert cut.mask.shape == cut.logprobs.shape == (2, int(batch.mask.sum(-1).max()))
    assert cut.tokens.shape[1] == cut.prompt_mask.shape[1] + cut.mask.shape[1]
    assert cut.prompt_mask.any(0).all()
    assert cut.mask.any(0).all()


def test_trimming_keeps_every_token_with_its_log_probability() -> None:
    batch = full().rows(torch.tensor([3, 4]))
    numbered = replace(batch, tokens=torch.arange(20).view(2, 10))
    cut = trim(numbered)

    def counted(micro_batch: Batch) -> tuple[list[int], list[float]]:
        attended = torch.cat([micro_batch.prompt_mask, micro_batch.mask], 1)
        return micro_batch.tokens[attended].tolist(), micro_batch.logprobs[micro_batch.mask].tolist()

    assert counted(cut) == counted(numbered)


def test_a_buffer_resumes_at_its_cursor() -> None:
    whole = [micro_batch.tokens[:, 0].tolist() for micro_batch in buffer()]
    stopped = buffer()
    served = iter(stopped)
    first = [next(served).tokens[:, 0].tolist() for _ in range(4)]
    resumed = buffer(full(1))
    resumed.load_state_dict(stopped.state_dict())
    assert first + [micro_batch.tokens[:, 0].tolist() for micro_batch in resumed] == whole


def test_the_step_of_the_last_micro_batch_is_repeated() -> None:
    stopped = buffer(accumulate=3)
    served = iter(stopped)
    for cursor, start in ((1, 0), (2, 0), (3, 0), (4, 3)):
        next(served)
        resumed = buffer(full(1), accumulate=3)
        resumed.load_state_dict(stopped.state_dict())
        assert resumed.cursor == cursor
        resumed.step_back()
        assert resumed.cursor == start


def test_every_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(buffer(seed=seed, epochs=1).places.flatten().tolist()) for seed in range(200)}
    assert len(orders) > 195


def test_a_place_is_the_number_of_a_minibatch_and_of_a_row_in_it() -> None:
    """Checkpoints hold places, so another form would not be resumed."""
    for epoch in buffer().places.T.tolist():
        assert sorted(divmod(place, 2**32) for place in epoch) == [(step, row) for step in range(3) for row in range(4)]


def test_rows_behind_the_last_whole_loss_group_are_skipped() -> None:
    made = buffer(full(11), rows_per_loss_group=2, epochs=1)
    assert made.places[-1].tolist() == [-1]
    assert sorted(row for each in made for row in each.tokens[:, 0].tolist()) == list(range(10))


def test_a_loss_group_counts_if_one_of_its_rows_does() -> None:
    batch = full()
    batch.mask[4] = False
    rows = [row for each in buffer(batch, rows_per_loss_group=2, epochs=1) for row in each.tokens[:, 0].tolist()]
    assert sorted(rows) == list(range(12))


def test_the_state_has_no_weight_and_the_weight_is_that_of_the_step() -> None:
    made = buffer()
    first = next(iter(made))
    assert float(first.weight) == float(first.mask.sum())
    assert "weight" not in made.state_dict()["rows"]
