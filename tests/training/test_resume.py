"""A checkpoint brings back the parts, the random states and the place in the loader, and refuses other weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollouts.step_loader import REPLAY_STEP
from rlhf_lightning.training import metrics
from rlhf_lightning.training.lightning_compat import rewind_to_step_start
from rlhf_lightning.training.loaders import LoaderBinding
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.training.resume import ResumeState


class Number:
    """A part whose state is a number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def resumable(module: Any, value: int) -> ResumeState:
    state = ResumeState(module, LoaderBinding(module))
    state.shared["shared"], state.per_rank["own"] = Number(value), Number(-value)
    return state


def lightnings(module: Any, processed: int, ready: int) -> dict[str, Any]:
    """What Lightning has put into a checkpoint before the stage is asked."""
    counts = {"ready": ready, "started": ready, "processed": processed, "completed": processed}
    progress = {"current": dict(counts), "total": dict(counts), "is_last_batch": False}
    loops = {"epoch_loop.batch_progress": progress, "epoch_loop.state_dict": {"_batches_that_stepped": 5}}
    loops["state_dict"] = {"combined_loader": [{"cursor": processed}]}
    return {"state_dict": module.state_dict(), "global_step": 2, "loops": {"fit_loop": loops}}


def test_parts_random_states_and_loader_are_restored(module: Callable[..., Any]) -> None:
    saving, loading = resumable(own := module(), 3), resumable(other := module(), 0)
    torch.manual_seed(5)
    checkpoint = lightnings(own, 4, 4)
    saving.save(checkpoint)
    expected = torch.rand(2)
    loading.load(checkpoint)
    torch.rand(7)
    assert not torch.equal(torch.rand(2), expected)
    loading.start_training()
    assert torch.equal(torch.rand(2), expected)
    assert (loading.shared["shared"].value, loading.per_rank["own"].value) == (3, -3)  # type: ignore[attr-defined]
    assert loading.loaders.restored == {"cursor": 4}
    assert loading.weights_changed
    assert other.weight is not own.weight


def test_states_of_another_number_of_ranks_are_shared_out(module: Callable[..., Any]) -> None:
    checkpoint = lightnings(own := module(), 4, 4)
    resumable(own, 3).save(checkpoint)
    one = {"sums": {"loss": torch.tensor([2.0, 4.0])}, "maxima": {"ratio": torch.tensor(1.0)}}
    two = {"sums": {"loss": torch.tensor([1.0, 2.0])}, "maxima": {"ratio": torch.tensor(3.0)}}
    checkpoint["ranks"] = [
        {"own": {"value": -3}, "metrics": one, "random": checkpoint["ranks"][0]["random"]},
        {"own": {"value": -4}, "metrics": two},
    ]
    loading = resumable(other := module(), 0)
    loading.per_rank["metrics"] = log = MetricLog(other)
    loading.load(checkpoint)
    assert loading.per_rank["own"].value == -3  # type: ignore[attr-defined]
    assert log.accumulator.read() == {"loss": 0.5, "ratio": 3.0}


def test_other_ranks_than_the_first_add_nothing_to_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"sums": {"loss": torch.tensor([2.0, 4.0])}, "maxima": {"ratio": torch.tensor(1.0)}}
    monkeypatch.setattr(metrics, "rank", lambda: 1)
    found = metrics.for_other_ranks([state])
    assert found["sums"]["loss"].tolist() == [0.0, 0.0]
    assert found["maxima"] == state["maxima"]


def test_a_checkpoint_of_another_format_is_refused(module: Callable[..., Any]) -> None:
    checkpoint = lightnings(own := module(), 4, 4)
    resumable(own, 0).save(checkpoint)
    assert checkpoint["format"] == 2
    del checkpoint["format"]
    with pytest.raises(UserError, match="the checkpoint has format 1, and this version reads format 2") as error:
        resumable(module(), 0).load(checkpoint)
    assert "\n" not in str(error.value)


def test_other_weights_are_refused(module: Callable[..., Any]) -> None:
    checkpoint = lightnings(own := module(), 4, 4)
    resumable(own, 0).save(checkpoint)
    checkpoint["state_dict"] = {"weight": torch.ones(4)}
    with pytest.raises(UserError, match=r"trains other weights than this run \(1 differ, weight for one\)"):
        resumable(module(), 0).load(checkpoint)


@pytest.mark.parametrize(("processed", "ready", "start"), [(4, 4, None), (5, 5, 4), (4, 5, 4), (1, 2, 0)])
def test_a_checkpoint_within_a_step_moves_to_its_first_micro_batch(
    module: Callable[..., Any], processed: int, ready: int, start: int | None
) -> None:
    checkpoint = lightnings(module(), processed, ready)
    rewind_to_step_start(checkpoint, 4)
    loop = checkpoint["loops"]["fit_loop"]
    current = loop["epoch_loop.batch_progress"]["current"]
    replayed = REPLAY_STEP in loop["state_dict"]["combined_loader"][0]
    assert replayed == (start is not None)
    assert current["processed"] == (processed if start is None else start)
    assert current["completed"] == (processed if start is None else max(0, start - 1))
