"""Invitations, sessions, and what is left of somebody who is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from feedback_items import Clock, pair

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.people import INVITATION, SESSION_SECONDS
from rlhf_lightning.feedback.store import Store

Judge = Callable[..., int]


def bytes_of(store: Store) -> bytes:
    """Everything on the disk: the file, its log and its index."""
    path = store.database.path
    return b"".join(p.read_bytes() for p in path.parent.glob(f"{path.name}*"))


def test_an_invitation_opens_a_session_and_its_token_is_nowhere_in_the_file(store: Store) -> None:
    token = store.invite("Ada", ("annotator", "owner"))
    ada = store.invited(token)
    assert ada is not None
    assert (ada.name, ada.roles) == ("Ada", {"annotator", "owner"})
    assert "Ada" not in ada.pseudonym
    session = store.open_session(ada.id)
    assert store.session(session) == ada
    assert len(token) >= 43  # 256 bits in base 64
    for secret in (token, session):
        assert secret.encode() not in bytes_of(store)
    assert b"Ada" in bytes_of(store)


@pytest.mark.parametrize("token", ["", "x", "' OR 1=1 --", "\udcff", "a" * 100_000])
def test_other_tokens_open_nothing(store: Store, token: str) -> None:
    store.invite("Ada")
    assert store.invited(token) is None
    assert store.session(token) is None


def test_a_second_invitation_ends_the_first_and_its_sessions(store: Store) -> None:
    first = store.invite("Ada")
    ada = store.invited(first)
    assert ada is not None
    session = store.open_session(ada.id)
    second = store.invite("  Ada ")
    assert store.invited(first) is None
    assert store.session(session) is None
    again = store.invited(second)
    assert again is not None
    assert again.id == ada.id


def test_a_session_expires_and_can_be_closed(store: Store, clock: Clock) -> None:
    ada = store.invited(store.invite("Ada"))
    assert ada is not None
    sessions = [store.open_session(ada.id), store.open_session(ada.id)]
    store.close_session(sessions[0])
    assert store.session(sessions[0]) is None
    clock.now += SESSION_SECONDS + 1
    assert store.session(sessions[1]) is None


def test_forgetting_deletes_the_name_from_the_disk_and_keeps_judgements(store: Store, judge: Judge) -> None:
    token = store.invite("Grace Hopper")
    grace = store.invited(token)
    assert grace is not None
    session = store.open_session(grace.id)
    store.add([pair(1, wanted=2), pair(2, wanted=1)])
    judge(grace.id, choice=0)
    assert b"Grace Hopper" in bytes_of(store)
    store.forget("Grace Hopper")
    assert b"Grace Hopper" not in bytes_of(store)
    assert store.invited(token) is None
    assert store.session(session) is None
    (entry,) = store.judgements_of(1)
    assert entry.pseudonym == grace.pseudonym
    assert [person.name for person in store.people()] == [None]
    bob = store.invited(store.invite("Bob"))
    assert bob is not None
    judge(bob.id, choice=0)
    judge(bob.id, choice=0)  # the lease of the forgotten one is free


def test_names_and_roles_that_are_none(store: Store) -> None:
    with pytest.raises(UserError, match="empty"):
        store.invite("  ")
    with pytest.raises(UserError, match="did you mean 'owner'"):
        store.invite("Ada", ("ownr",))
    store.invite("Ada")
    with pytest.raises(UserError, match=r"nobody is called 'Adda'.*did you mean 'Ada'"):
        store.forget("Adda")


def test_the_link_that_is_printed_is_one_that_the_page_serves() -> None:
    pytest.importorskip("starlette")
    from rlhf_lightning.feedback.server import ROUTES

    assert f"{INVITATION}{{invitation}}" in {route.path for route in ROUTES}
