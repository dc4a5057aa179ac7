"""Answers of a chat endpoint by the content of their request, in memory and in a file that processes share."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections import deque
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

SECONDS_TO_WAIT = 60.0
"""For another process that writes to the file."""


def content_key(request: Any) -> str:
    """Return the SHA-256 of a request, whatever the order of its keys.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Keep answers by key; an answer that is kept survives the end of the process, and no other process reads half of one.

    The file is an SQLite database, which is opened for each call: a reward may be copied, and called in several threads.

    Args:
        path: of the file, made at the first answer; None keeps answers in memory alone.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.known: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._unsaved: deque[tuple[str, str]] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "known": dict(self.known)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.known, self._lock, self._unsaved = state["path"], state["known"], threading.Lock(), deque()

    def get(self, keys: Collection[str]) -> dict[str, Any]:
        """Return the answers of the keys that have one."""
        missing = [key for key in keys if key not in self.known]
        if missing and self.path is not None and self.path.is_file():
            with self._lock, closing(self._connect()) as connection:
                for key in missing:
                    for (answer,) in connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)):
                        self.known[key] = json.loads(answer)
        return {key: self.known[key] for key in keys if key in self.known}

    def keep(self, key: str, answer: Any) -> None:
        """Keep an answer, a value of JSON; it is in the file when this returns.

        Answers that arrive while others are saved are saved together: each transaction waits for the disk.
        """
        self.known |= {key: answer}
        if self.path is None:
            return
        self._unsaved.append((key, json.dumps(answer)))
        with self._lock:
            rows = [self._unsaved.popleft() for _ in range(len(self._unsaved))]
            if rows:
                with closing(self._connect()) as connection, connection:
                    connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def check(self) -> None:
        """Check that the file can be opened.

        Raises:
            UserError: it cannot, or it is another kind of file.
        """
        if self.path is not None and self.path.exists():
            with closing(self._connect()):
                pass

    def _connect(self) -> sqlite3.Connection:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)
            connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
            connection.execute("PRAGMA synchronous = NORMAL")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"the cache {self.path} cannot be opened: {error}; set cache to another file") from error
        return connection
