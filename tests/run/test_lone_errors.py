"""After an error a run saves only where every rank has failed at the same point, and what is saved is a whole step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning import distributed
from rlhf_lightning.distributed import raise_on_all_ranks, shared_errors
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.checkpoints import Checkpoints


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "any_rank", lambda flag: flag)


def ended_by(error: BaseException, collecting: bool = True, step: int = 3) -> list[int]:
    """The steps that are saved when an error ends a run."""
    saved: list[int] = []
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        global_step=step,
        default_root_dir="out",
        is_global_zero=False,
        save_checkpoint=lambda path, weights_only: saved.append(int(Path(path).stem.removeprefix("step-"))),
    )
    loaders, validation = (
        SimpleNamespace(train=SimpleNamespace(collecting=collecting)),
        SimpleNamespace(states_before=None),
    )
    module: Any = SimpleNamespace(loaders=loaders, validation=validation)
    Checkpoints().on_exception(trainer, module, error)
    return saved


def shared(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as found, shared_errors():
        raise error
    return found.value


@pytest.mark.usefixtures("two_ranks")
def test_an_error_of_one_rank_alone_saves_nothing() -> None:
    assert ended_by(UserError("here")) == []
    assert ended_by(RuntimeError("here")) == []


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("error", [UserError("here"), RuntimeError("a plug-in")])
def test_an_error_that_all_ranks_share_is_saved_also_as_the_cause_of_another(error: Exception) -> None:
    found = shared(error)
    assert ended_by(found) == [3]
    with pytest.raises(ValueError, match="of Lightning") as outer:
        raise ValueError("of Lightning") from found
    assert ended_by(outer.value) == [3]


def test_one_process_shares_its_errors_with_nobody() -> None:
    assert ended_by(UserError("here")) == [3]
    assert ended_by(UserError("here"), collecting=False) == []
    assert ended_by(UserError("here"), step=0) == []
    assert ended_by(KeyboardInterrupt()) == []


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_without_the_error_raises_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "any_rank", lambda flag: True)
    with pytest.raises(UserError, match="another rank of this run failed") as found:
        raise_on_all_ranks(lambda: 3)
    assert ended_by(found.value) == [3]
