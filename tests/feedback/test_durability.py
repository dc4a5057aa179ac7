"""What survives: kills, a full disk, other versions, a second server, a backup in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feedback_items import pair

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import database, schema
from rlhf_lightning.feedback.database import StoreUnavailableError
from rlhf_lightning.feedback.store import Store

LABELLER = """
import sys
from rlhf_lightning.feedback.store import Store

store = Store(sys.argv[1])
ada = store.invited(sys.argv[2])
while (lease := store.next(ada.id)) is not None:
    saved = store.save(ada.id, lease.id, {"choice": 0, "comment": "x" * 2000})
    print(saved.judgement_id, flush=True)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where the test may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_journal_is_written_ahead_and_synchronous(store: Store) -> None:
    with store.database.read() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_every_judgement_that_was_confirmed_survives_kills(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store(path, create=True) as store:
        store.add(pair(i) for i in range(5000))
        token = store.invite("Ada")
    confirmed: list[int] = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", LABELLER, str(path), token], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stdout is not None
        confirmed += [int(process.stdout.readline()) for _ in range(40)]
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
    with Store(path) as store:
        latest = sorted(store.latest().values())
        assert set(confirmed) <= set(latest)
        assert len(set(confirmed)) == len(confirmed) >= 120
        assert len(latest) <= len(confirmed) + 3  # at most one a kill was saved and not yet confirmed
        with store.database.read() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(2**12)):
            pass


def judge_all(store: Store, annotator: int, confirmed: list[int]) -> None:
    """Answer at length whatever is asked; keeps what the store said is saved."""
    while (lease := store.next(annotator)) is not None:
        saved = store.save(annotator, lease.id, {"choice": 0, "comment": "x" * 9000})
        assert saved.judgement_id is not None
        confirmed.append(saved.judgement_id)


def test_a_full_disk_is_said_and_nothing_confirmed_is_lost(small_disk: Path) -> None:
    path = small_disk / "feedback.db"
    confirmed: list[int] = []
    with Store(path, create=True) as store:
        store.add(pair(i) for i in range(200))
        ada = store.invited(store.invite("Ada"))
        assert ada is not None
        with pytest.raises(StoreUnavailableError, match=r"nothing of this was saved; free some space"):
            judge_all(store, ada.id, confirmed)
        assert 5 < len(confirmed) < 200
        assert [entry.judgement_id for entry in store.history(ada.id, limit=1000)] == confirmed[::-1]
    with Store(path) as store:
        assert sorted(store.latest().values()) == confirmed


def test_a_store_works_again_when_the_disk_has_space_again(small_disk: Path) -> None:
    confirmed: list[int] = []
    ballast = small_disk / "ballast"
    with Store(small_disk / "feedback.db", create=True) as store:
        store.add(pair(i) for i in range(20))
        ada = store.invited(store.invite("Ada"))
        assert ada is not None
        fill(ballast)
        with pytest.raises(StoreUnavailableError):
            judge_all(store, ada.id, confirmed)
        ballast.unlink()
        judge_all(store, ada.id, confirmed)
        assert len(confirmed) == 20
        assert sorted(store.latest().values()) == confirmed


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    Store(path, create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"feedback.db has schema version 99, .* reads up to 1; install a newer"):
        Store(path)


def test_a_store_of_an_older_version_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feedback.db"
    with Store(path, create=True) as store:
        store.add([pair(1)])
    newer = (*schema.MIGRATIONS, "CREATE TABLE extra (x); INSERT INTO extra SELECT id FROM items;")
    monkeypatch.setattr(schema, "MIGRATIONS", newer)
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    with Store(path) as store, store.database.read() as connection:
        assert [row["x"] for row in connection.execute("SELECT x FROM extra")] == [1]
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feedback.db"
    Store(path, create=True).close()
    broken = (*schema.MIGRATIONS, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1);")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        patch.setattr(database, "MIGRATIONS", broken)
        with pytest.raises(UserError, match="nowhere"):
            Store(path)
    with Store(path) as store, store.database.read() as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'extra'").fetchone()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to have a header" * 100])
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "feedback.db"
    path.write_bytes(content)
    if not content:
        Store(path).close()  # an empty file is an empty database
        return
    with pytest.raises(UserError, match=r"feedback.db: file is not a database"):
        Store(path)


def test_a_database_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    with pytest.raises(UserError, match="an SQLite database of something else"):
        Store(path)


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.db is not there; make it with `feedback ask`"):
        Store(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    with pytest.raises(UserError, match="there is no folder"):
        Store(tmp_path / "nowhere" / "feedback.db", create=True)


def test_a_second_server_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    serve = "import sys, time; from rlhf_lightning.feedback.store import Store; s = Store(sys.argv[1]); "
    with Store(path, create=True) as store:
        first = subprocess.Popen(
            [
                sys.executable,
                "-c",
                serve + "s.database.lock_for_serving(); print('on', flush=True); time.sleep(60)",
                str(path),
            ],
            stdout=subprocess.PIPE,
        )
        assert first.stdout is not None
        assert first.stdout.readline() == b"on\n"
        with pytest.raises(UserError, match=rf"feedback.db is served already by process {first.pid}; stop that server"):
            store.database.lock_for_serving()
        assert store.add([pair(1)]) == 1  # other commands work beside it
        first.kill()
        first.wait()
        store.database.lock_for_serving()


def test_a_backup_is_whole_while_others_write(store: Store, tmp_path: Path, judge: Callable[..., int]) -> None:
    store.add(pair(i) for i in range(50))
    ada = store.invited(store.invite("Ada"))
    assert ada is not None
    for _ in range(10):
        judge(ada.id, choice=0)
    store.database.backup(tmp_path / "copy.db")
    judge(ada.id, choice=1)
    with Store(tmp_path / "copy.db") as copy:
        assert len(copy.latest()) == 10
        assert copy.progress_of(ada.id) == (10, 50)
    assert len(store.latest()) == 11
    with pytest.raises(UserError, match=r"copy.db is there already"):
        store.database.backup(tmp_path / "copy.db")
    with pytest.raises(UserError, match=r"nowhere"):
        store.database.backup(tmp_path / "nowhere" / "copy.db")
    assert not list(tmp_path.glob("*.partial"))


def test_another_process_that_keeps_the_store_locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.database.read() as connection:
        connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="another process keeps it locked"):
        store.invite("Ada")
    other.execute("ROLLBACK")
    other.close()
    assert store.invite("Ada")
