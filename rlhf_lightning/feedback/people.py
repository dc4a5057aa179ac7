"""Annotators: invited, known by a token, forgotten."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from dataclasses import dataclass

from rlhf_lightning.errors import UserError, nearest

ROLES = ("annotator", "adjudicator", "owner")
INVITATION = "/join/"
"""The path between a server's address and the token of an invitation link."""
SESSION_SECONDS = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Annotator:
    """Somebody who judges."""

    id: int
    pseudonym: str
    """Names the annotator in judgements and exports."""
    name: str | None
    """None once it is forgotten, and for annotators of an imported file."""
    roles: frozenset[str]
    trained: bool
    """Whether no training item is left to answer."""


def new_token() -> str:
    """Return 256 random bits as text for a link or a cookie."""
    return secrets.token_urlsafe(32)


def hashed(token: str) -> bytes:
    """Return what the store keeps of a token.

    One pass of SHA-256 without salt is enough: a token has 256 random bits, so nobody can try them one by one, which is
    what slow and salted hashes make harder for passwords.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def invite(
    connection: sqlite3.Connection, name: str, roles: tuple[str, ...], now: float, pseudonym: str | None = None
) -> str:
    """Return a new token of somebody; an earlier token of the same name, and its sessions, end.

    The pseudonym of somebody new is random unless it is given.

    Raises:
        UserError: the name is empty, or there is no such role.
    """
    name = " ".join(name.split())
    if not name or not name.isprintable():
        raise UserError(f"the name {name!r} is empty or cannot be printed; give the name of the person to invite")
    for role in roles:
        if role not in ROLES:
            raise UserError(f"there is no role {role!r}; {nearest(role, ROLES)}")
    token, text = new_token(), " ".join(sorted(set(roles)))
    known = connection.execute("SELECT annotator FROM people WHERE name = ?", (name,)).fetchone()
    if known is None:
        identity = add_annotator(connection, text, now, pseudonym)
        connection.execute("INSERT INTO people VALUES (?, ?)", (identity, name))
    else:
        identity = known["annotator"]
    connection.execute("UPDATE annotators SET token_hash = ?, roles = ? WHERE id = ?", (hashed(token), text, identity))
    connection.execute("DELETE FROM sessions WHERE annotator = ?", (identity,))
    return token


def add_annotator(connection: sqlite3.Connection, roles: str, now: float, pseudonym: str | None = None) -> int:
    """Add somebody without a name and a token; the pseudonym says nothing of the name, nor of the order of invitations."""
    given = pseudonym or f"annotator-{secrets.token_hex(4)}"
    cursor = connection.execute(
        "INSERT INTO annotators (pseudonym, roles, created) VALUES (?, ?, ?)", (given, roles, now)
    )
    return cursor.lastrowid or 0


def invited(connection: sqlite3.Connection, token: str) -> Annotator | None:
    """Return whose invitation this is; None where it is nobody's, or is revoked."""
    row = connection.execute("SELECT id, token_hash FROM annotators WHERE token_hash = ?", (hashed(token),)).fetchone()
    if row is None or not hmac.compare_digest(row["token_hash"], hashed(token)):
        return None
    return annotator(connection, row["id"])


def annotator(connection: sqlite3.Connection, identity: int) -> Annotator | None:
    """Return the annotator with this id."""
    row = connection.execute(
        "SELECT annotators.*, name, EXISTS (SELECT 1 FROM items WHERE purpose = 'training' AND NOT EXISTS (SELECT 1 FROM "
        "latest WHERE item = items.id AND annotator = annotators.id)) AS training "
        "FROM annotators LEFT JOIN people ON annotator = id WHERE id = ?",
        (identity,),
    ).fetchone()
    if row is None:
        return None
    return Annotator(row["id"], row["pseudonym"], row["name"], frozenset(row["roles"].split()), not row["training"])


def open_session(connection: sqlite3.Connection, identity: int, now: float) -> str:
    """Return the token of a new session, and drop those that have expired."""
    token = new_token()
    connection.execute("DELETE FROM sessions WHERE expires < ?", (now,))
    connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (hashed(token), identity, now + SESSION_SECONDS))
    return token


def session(connection: sqlite3.Connection, token: str, now: float) -> Annotator | None:
    """Return whose session this is; None where it is nobody's, has expired or was ended."""
    row = connection.execute("SELECT * FROM sessions WHERE token_hash = ?", (hashed(token),)).fetchone()
    if row is None or not hmac.compare_digest(row["token_hash"], hashed(token)) or row["expires"] < now:
        return None
    return annotator(connection, row["annotator"])


def close_session(connection: sqlite3.Connection, token: str) -> None:
    """End a session."""
    connection.execute("DELETE FROM sessions WHERE token_hash = ?", (hashed(token),))


def forget(connection: sqlite3.Connection, name: str) -> None:
    """Delete a name; the judgements stay under the pseudonym, and the invitation and sessions end.

    Raises:
        UserError: nobody has this name.
    """
    name = " ".join(name.split())
    row = connection.execute("SELECT annotator FROM people WHERE name = ?", (name,)).fetchone()
    if row is None:
        known = [row["name"] for row in connection.execute("SELECT name FROM people")]
        hint = nearest(name, known) if known else "nobody is invited"
        raise UserError(f"nobody is called {name!r} in this store; {hint}")
    connection.execute("DELETE FROM people WHERE annotator = ?", (row["annotator"],))
    connection.execute("UPDATE annotators SET token_hash = NULL WHERE id = ?", (row["annotator"],))
    connection.execute("DELETE FROM sessions WHERE annotator = ?", (row["annotator"],))
    connection.execute("UPDATE leases SET closed = 1 WHERE annotator = ? AND closed = 0", (row["annotator"],))
