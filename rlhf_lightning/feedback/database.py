"""One SQLite database for all threads of a process: opened, migrated, locked, and its errors in one line."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.schema import APPLICATION_ID, MIGRATIONS, migrate

BUSY_SECONDS = 10.0
"""How long a transaction waits for one of another process (`ask`, `invite`, … beside a server)."""


class StoreUnavailableError(UserError):
    """The store cannot be written or read at present; the transaction left nothing behind."""


class Database:
    """One connection, used by one thread at a time.

    The journal is a write-ahead log and `synchronous` is FULL: a transaction that has returned is on the disk.

    Args:
        path: the store's file.
        create: make the file where it is missing.

    Raises:
        UserError: the file is missing, is no feedback store, or a newer version of this library wrote it.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        if path.is_dir():
            raise UserError(f"store {path} is a folder; set --store to a file")
        if not create and not path.is_file():
            raise UserError(f"store {path} is not there; make it with `feedback ask` or set --store to another file")
        if not path.parent.is_dir():
            raise UserError(f"store {path}: there is no folder {path.parent}; make the folder first")
        self.path, self._lock, self._serving = path, threading.RLock(), -1
        self._writing = False
        with _errors(path):
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        with _errors(self.path):
            self._connection.row_factory = sqlite3.Row
            self._check()
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA secure_delete = ON")  # a name that is forgotten is overwritten
        if self._version() < len(MIGRATIONS):
            with self.write() as connection:
                migrate(connection, self._version())

    def _check(self) -> None:
        empty = not self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if not empty and application != APPLICATION_ID:
            raise UserError(f"store {self.path} is an SQLite database of something else; set --store to another file")
        if self._version() > len(MIGRATIONS):
            raise UserError(
                f"store {self.path} has schema version {self._version()}, and this version of rlhf_lightning reads up to "
                f"{len(MIGRATIONS)}; install a newer rlhf_lightning"
            )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction that writes: no other begins before it has ended; an error leaves nothing of it behind.

        Raises:
            StoreUnavailableError: the disk is full, or another process keeps the store locked.
        """
        with self._lock, _errors(self.path):
            if self._connection.in_transaction:  # part of the transaction that calls
                assert self._writing, "a transaction that reads cannot begin to write"
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._writing = True
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._writing = False

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Run queries that see one state of the store."""
        with self._lock, _errors(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Run long queries on a connection of their own: other threads read and write meanwhile, and none of it is seen."""
        with (
            _errors(self.path),
            contextlib.closing(sqlite3.connect(self.path, BUSY_SECONDS, isolation_level=None)) as aside,
        ):
            aside.row_factory = sqlite3.Row
            aside.execute("BEGIN")
            yield aside

    def backup(self, target: Path) -> None:
        """Copy the store as it is now, also while a server writes to it; the copy appears whole or not at all.

        Raises:
            UserError: the target is there already, or cannot be written.
        """
        if target.exists():
            raise UserError(f"backup {target} is there already; remove it or give another name")
        if not target.parent.is_dir():
            raise UserError(f"backup {target}: there is no folder {target.parent}; make the folder first")
        partial = target.with_name(target.name + ".partial")
        try:
            partial.unlink(missing_ok=True)
            with _errors(partial), contextlib.closing(sqlite3.connect(partial)) as copy:
                with self._lock:
                    self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, which can be moved
            os.replace(partial, target)
        except OSError as error:
            raise UserError(f"backup {target} cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def purge(self) -> None:
        """Move the write-ahead log into the database, so that no deleted text stays in the log."""
        with self._lock, _errors(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def lock_for_serving(self) -> None:
        """Become the one server of this store, until `close` or the end of the process, however it ends.

        Raises:
            UserError: another server has the store.
        """
        import fcntl

        path = self.path.with_name(self.path.name + ".serving")
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            raise UserError(
                f"store {self.path} is served already{f' by process {holder}' if holder else ''}; stop that server, or set "
                "--store to another store"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._serving = handle

    def close(self) -> None:
        """Close the connection and give up the lock of a server."""
        with self._lock:
            self._connection.close()
            if self._serving >= 0:
                os.close(self._serving)
                self._serving = -1


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Say in one line what SQLite could not do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        reason = str(error)
        if "full" in reason or "disk I/O" in reason:
            hint = "the disk may be full: nothing of this was saved; free some space and try again"
        elif "locked" in reason or "busy" in reason:
            hint = "another process keeps it locked: nothing of this was saved; try again"
        elif "unable to open" in reason or "readonly" in reason:
            hint = "SQLite writes beside the file: make its folder writable, or copy the store to one that is"
        else:
            hint = "check the file and its folder"
        raise StoreUnavailableError(f"store {path}: {reason}; {hint}") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise
        raise UserError(f"store {path}: {error}; restore it from a backup or set --store to another file") from error
