"""The buffer and the loaders: whole units, the same gradient however a step is cut, and a state that continues anywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_lightning.models.micro_batches import trim
from rlhf_lightning.rollouts.buffer import RolloutBuffer, batch_of
from rlhf_lightning.rollouts.rollout_loader import RolloutLoader
from rlhf_lightning.rollouts.row_source import RowSource
from rlhf_lightning.rollouts.step_loader import StepLoader
from rlhf_lightning.types import Batch, InstructionBatch


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


@pytest.mark.parametrize("accumulate", [1, 2, 4, 5])  # the last has a part without a row
def test_a_step_has_the_same_gradient_however_it_is_cut(accumulate: int) -> None:
    def gradients(parts: int) -> list[torch.Tensor]:
        found, scale = [], torch.ones(12, requires_grad=True)
        for index, part in enumerate(buffer(accumulate=parts)):
            row = part.tokens[:, 0]
            loss = (scale[row][:, None] * part.logprobs * part.mask).sum() / part.weight
            loss.backward()
            if (index + 1) % parts == 0:
                assert scale.grad is not None
                found.append(scale.grad.clone())
                scale.grad = None
        return found

    for one, other in zip(gradients(1), gradients(accumulate), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_every_row_comes_once_an_epoch_in_another_order() -> None:
    rows = [part.tokens[:, 0].tolist() for part in buffer()]
    first, second = ([row for part in half for row in part] for half in (rows[:3], rows[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_responses_to_a_prompt_are_learned_from_in_one_step_each_epoch_in_another_order() -> None:
    batch = replace(full(24), groups=torch.arange(24) // 4)
    parts = list(buffer(batch))
    assert [len(part) for part in parts] == [8] * 6
    for part in parts:
        assert part.groups.unique(return_counts=True)[1].tolist() == [4, 4]
    first, second = (torch.cat([part.groups for part in half]).tolist() for half in (parts[:3], parts[3:]))
    assert first != second
    within = [torch.cat([part.tokens[:, 0] for part in half]).view(6, 4) % 4 for half in (parts[:3], parts[3:])]
    assert all(len({tuple(row) for row in rows.tolist()}) > 1 for rows in within)


def test_units_stay_together_and_empty_ones_stay_out() -> None:
    batch = full()
    batch.mask[4:6] = False
    parts = list(buffer(batch, rows_per_loss_group=2, epochs=1))
    rows = [row for part in parts for row in part.tokens[:, 0].tolist()]
    assert all(rows[i] % 2 == 0 and rows[i + 1] == rows[i] + 1 for i in range(0, len(rows), 2))
    assert sorted(rows) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_parts_of_a_step_have_about_as_many_tokens_and_keep_responses_to_a_prompt_together() -> None:
    lengths = torch.tensor([40, 1, 2, 3, 12, 13, 9, 1, 8, 8, 1, 1, 5, 5, 2, 2])
    batch = full(16, 40)
    batch.mask[:] = torch.arange(40)[None] < lengths[:, None]
    batch.prompt_mask[:] = True
    options: Any = {"epochs": 1, "minibatches": 1}
    parts = list(buffer(batch, **options, accumulate=3))
    assert sorted(row for part in parts for row in part.tokens[:, 0].tolist()) == list(range(16))
    # eight prompts of 4 tokens with two responses each: the largest goes first, each to the part that has least
    assert sorted(int(part.mask.sum()) + 4 * len(part.groups.unique()) for part in parts) == [45, 49, 51]
    for part in parts:
        assert all(int((part.groups == group).sum()) == 2 for group in part.groups.unique())
    # with fewer prompts than parts, responses are what is dealt out
    several = [len(part) for part in buffer(batch, **options, accumulate=12)]
    assert len(several) == 12
    assert min(several) == 1
    one = replace(batch, groups=torch.zeros_like(batch.groups))
    halves = list(buffer(one, **options, accumulate=2))
    assert sorted(int(part.mask.sum()) + 4 * len(part) for part in halves) == [88, 89]


def test_with_nothing_to_learn_from_the_number_of_parts_stays() -> None:
    batch = full()
    batch.mask[:] = False
    parts = list(buffer(batch, accumulate=2))
    assert len(parts) == len(buffer(accumulate=2)) == 12
    assert not any(part.mask.any() for part in parts)
    assert all(float(part.weight) == 1.0 for part in parts)


def test_trimming_takes_padding_alone() -> None:
    batch = full().rows(torch.tensor([0, 1]))
    cut = trim(batch)
    assert torch.equal(cut.prompt_mask.sum(-1), batch.prompt_mask.sum(-1))
    assert torch.equal(cut.mask.sum(-1), batch.mask.sum(-1))
    assert cut.mask.shape == cut.logprobs.shape == (2, int(batch.mask.sum(-1).max()))
    assert cut.tokens.shape[1] == cut.prompt_mask.shape[1] + cut.mask.shape[1]
    assert cut.prompt_mask.any(0).all()
    assert cut.mask.any(0).all()


def test_trimming_keeps_every_token_with_what_was_measured_on_it() -> None:
    batch = full().rows(torch.tensor([3, 4]))
    numbered = replace(batch, tokens=torch.arange(20).view(2, 10))
    cut = trim(numbered)

    def counted(part: Batch) -> tuple[list[int], list[float]]:
        attended = torch.cat([part.prompt_mask, part.mask], 1)
        return part.tokens[attended].tolist(), part.logprobs[part.mask].tolist()

    assert counted(cut) == counted(numbered)


def test_a_buffer_continues_in_its_middle() -> None:
    whole = [part.tokens[:, 0].tolist() for part in buffer()]
    stopped = buffer()
    served = iter(stopped)
    begun = [next(served).tokens[:, 0].tolist() for _ in range(4)]
    resumed = buffer(full(1))
    resumed.load_state_dict(stopped.state_dict())
    assert begun + [part.tokens[:, 0].tolist() for part in resumed] == whole


def source(rows: int = 10, batch: int = 3) -> RowSource:
    data: Any = [{"prompt": str(i)} for i in range(rows)]
    return RowSource(DataLoader(data, batch_size=batch, shuffle=True, collate_fn=list), seed=1)


def test_rows_come_in_an_order_that_can_be_continued() -> None:
    torch.manual_seed(123)
    whole = [source_.next() for source_ in [source()] for _ in range(9)]
    before = torch.get_rng_state()
    stopped = source()
    begun = [stopped.next() for _ in range(5)]
    resumed = source()
    resumed.load_state_dict(stopped.state_dict())
    assert begun + [resumed.next() for _ in range(4)] == whole
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's dice are touched
    assert whole[:4] != whole[4:8]


def loader(iterations: int = 3) -> RolloutLoader:
    def collect(rows: Any, count: bool, generator: torch.Generator, seed: int) -> RolloutBuffer:
        batch = full()
        return buffer(Batch(**{**batch.tensors(), "rewards": torch.rand(12, generator=generator), **NONE}), seed=seed)

    return RolloutLoader(source(), collect, lambda: buffer(full(1)), 6, iterations, seed=3)


NONE: Any = {"values": None, "advantages": None, "returns": None}


@pytest.mark.parametrize("stop", [1, 6, 8, 12])
def test_a_loader_continues_anywhere(stop: int) -> None:
    whole = [part.rewards.tolist() for part in loader()]
    assert len(whole) == len(loader()) == 18
    stopped = loader()
    served = iter(stopped)
    begun = [next(served).rewards.tolist() for _ in range(stop)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert begun + [part.rewards.tolist() for part in resumed] == whole


def test_a_second_epoch_goes_on_where_the_first_ended() -> None:
    once, twice = loader(iterations=4), loader(iterations=2)
    whole = [part.rewards.tolist() for part in once]
    served = iter(twice)
    first = [next(served).rewards.tolist() for _ in range(12)]  # Lightning stops asking at the known length
    assert first + [part.rewards.tolist() for part in twice] == whole


def instructions(rows: Any) -> InstructionBatch:
    count = len(rows)
    lengths = torch.tensor([1 + int(row["prompt"]) % 4 for row in rows])
    mask = torch.arange(4)[None] < lengths[:, None]
    number = torch.tensor([int(row["prompt"]) for row in rows])
    prompt = torch.ones(count, 1, dtype=torch.bool)
    return InstructionBatch(number[:, None].expand(count, 5), prompt, mask, number, mask[:, 0])


def steps() -> StepLoader:
    return StepLoader(source(), instructions, lambda batch: batch.mask.sum(), accumulate=3)


def test_recorded_rows_know_the_weight_of_their_step() -> None:
    batches = list(steps())
    assert len(batches) == 4  # the last step has one part
    assert float(batches[0].weight) == sum(int(batch.mask.sum()) for batch in batches[:3])
    assert batches[0].weight == batches[2].weight
    assert float(batches[3].weight) == int(batches[3].mask.sum())


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_recorded_rows_continue_inside_a_step(stop: int) -> None:
    whole = [(batch.groups.tolist(), float(batch.weight)) for batch in steps()]
    stopped = steps()
    served = iter(stopped)
    begun = [(batch.groups.tolist(), float(batch.weight)) for batch in (next(served) for _ in range(stop))]
    resumed = steps()
    resumed.load_state_dict(stopped.state_dict())
    rest = [(batch.groups.tolist(), float(batch.weight)) for batch in resumed] if stop < 4 else []
    assert begun + rest == whole
