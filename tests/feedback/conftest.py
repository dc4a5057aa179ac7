from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feedback_items import Clock

from rlhf_lightning.feedback.store import Store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / "feedback.db", create=True, clock=clock, rng=random.Random(0)) as store:
        yield store


@pytest.fixture
def person(store: Store) -> Callable[..., int]:
    """Invites somebody and gives the id."""

    def invite(name: str, *roles: str) -> int:
        annotator = store.invited(store.invite(name, roles or ("annotator",)))
        assert annotator is not None
        return annotator.id

    return invite


@pytest.fixture
def judge(store: Store) -> Callable[..., int]:
    """Has somebody answer what he is asked, and gives the judgement's id."""

    def answer(annotator: int, **given: object) -> int:
        lease = store.next(annotator)
        assert lease is not None
        saved = store.save(annotator, lease.id, given, seconds=2.0)
        assert saved.status == "saved"
        assert saved.judgement_id is not None
        return saved.judgement_id

    return answer
