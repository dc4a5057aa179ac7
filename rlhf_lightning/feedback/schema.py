"""The tables of a feedback store, and the migrations between versions of them."""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x524C4846
"""SQLite's application id of a feedback store: "RLHF" in ASCII."""

FIRST = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE guidelines (version INTEGER PRIMARY KEY, text TEXT NOT NULL, created REAL NOT NULL);

CREATE TABLE annotators (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pseudonym TEXT NOT NULL UNIQUE,
    roles TEXT NOT NULL,              -- separated by spaces
    token_hash BLOB UNIQUE,           -- NULL: the invitation is revoked
    created REAL NOT NULL
);
CREATE TABLE people (                 -- the only table that holds a name; `forget` deletes the row
    annotator INTEGER PRIMARY KEY REFERENCES annotators,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE sessions (
    token_hash BLOB PRIMARY KEY,
    annotator INTEGER NOT NULL REFERENCES annotators,
    expires REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_of ON sessions (annotator);

CREATE TABLE candidates (             -- generated responses, so that a resumed `ask` generates none of them again
    source TEXT NOT NULL,             -- digest of the model and the sampling parameters
    prompt TEXT NOT NULL,             -- digest of the prompt
    responses TEXT NOT NULL,          -- JSON
    PRIMARY KEY (source, prompt)
) WITHOUT ROWID;

CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,         -- digest of round, kind, purpose, prompt and responses
    kind TEXT NOT NULL CHECK (kind IN ('pair', 'ranking', 'rating', 'edit')),
    purpose TEXT NOT NULL CHECK (purpose IN ('item', 'gold', 'training')),
    prompt TEXT NOT NULL,             -- JSON: text or messages
    criteria TEXT NOT NULL,           -- JSON: names
    answer TEXT,                      -- JSON: the known answer of a gold or training item
    explanation TEXT,
    wanted INTEGER NOT NULL CHECK (wanted > 0),
    round INTEGER NOT NULL,
    probability REAL NOT NULL,        -- with which the item was chosen among the candidates
    rank REAL NOT NULL,               -- place in the queue; lower comes first
    created REAL NOT NULL,
    judged INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'settled', 'disputed', 'adjudicated'))
);
CREATE INDEX items_queue ON items (purpose, state, rank, id);
CREATE TABLE responses (
    item INTEGER NOT NULL REFERENCES items,
    position INTEGER NOT NULL,
    content TEXT NOT NULL,            -- JSON: text or messages; null where the response is media
    model TEXT,                       -- NULL: unknown
    media TEXT REFERENCES media,
    PRIMARY KEY (item, position)
) WITHOUT ROWID;
CREATE TABLE media (digest TEXT PRIMARY KEY, type TEXT NOT NULL, data BLOB NOT NULL);

CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    annotator INTEGER NOT NULL REFERENCES annotators,
    item INTEGER NOT NULL REFERENCES items,
    adjudication INTEGER NOT NULL,
    ordering TEXT NOT NULL,           -- JSON: which response is shown at which position
    opened REAL NOT NULL,
    expires REAL NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX leases_open ON leases (annotator) WHERE closed = 0;
CREATE INDEX leases_on ON leases (item, expires) WHERE closed = 0;

CREATE TABLE judgements (             -- append-only
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    annotator INTEGER NOT NULL REFERENCES annotators,
    item INTEGER NOT NULL REFERENCES items,
    action TEXT NOT NULL CHECK (action IN ('judge', 'correct', 'undo')),
    adjudication INTEGER NOT NULL,
    replaces INTEGER REFERENCES judgements,   -- what a correction replaces or an undo withdraws
    lease INTEGER UNIQUE REFERENCES leases,   -- the form that was sent: it counts once; NULL for corrections, undos and imports
    answer TEXT,                      -- JSON; NULL for an undo
    ordering TEXT NOT NULL,
    seconds REAL,
    guidelines INTEGER,
    time REAL NOT NULL
);
CREATE TRIGGER judgements_no_update BEFORE UPDATE ON judgements
BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END;
CREATE TRIGGER judgements_no_delete BEFORE DELETE ON judgements
BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END;

CREATE TABLE latest (               -- the judgement that counts; derived from `judgements`, see judgements.latest_at
    item INTEGER NOT NULL,
    annotator INTEGER NOT NULL,
    adjudication INTEGER NOT NULL,
    judgement INTEGER NOT NULL UNIQUE,
    skipped INTEGER NOT NULL,
    PRIMARY KEY (item, annotator, adjudication)
) WITHOUT ROWID;
CREATE INDEX latest_of ON latest (annotator, judgement);
"""

MIGRATIONS: tuple[str, ...] = (FIRST,)
"""SQL that leads from each version to the next; a store's version is the number of them that it has been through."""


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a store of `version` to the newest version, in the transaction that is open."""
    for script in MIGRATIONS[version:]:
        for statement in statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def statements(script: str) -> list[str]:
    """Split a script; `executescript` would commit the open transaction.

    >>> statements("CREATE TABLE a (b); CREATE INDEX c ON a (b);")
    ['CREATE TABLE a (b);', 'CREATE INDEX c ON a (b);']
    """
    found, statement = [], ""
    for clause in script.split(";")[:-1]:
        statement += clause + ";"
        if sqlite3.complete_statement(statement):
            found.append(statement.strip())
            statement = ""
    return found
