"""Checkpoints: whatever keeps one from its end, the log is moved once that has gone, and the file gets smaller."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pynenc.state_backend.checkpoints import Checkpoints

MAX_BYTES = 1 << 20
"""Of which a log may have a sixteenth before it is moved, and an eighth before it is made empty."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def writer(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.executescript(
        "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; "
        "PRAGMA secure_delete = OFF; CREATE TABLE t (x)"
    )
    yield connection
    connection.close()


@pytest.fixture
def checkpoints(path: Path, writer: sqlite3.Connection) -> Checkpoints:
    made = Checkpoints(str(path), writer)
    made.bound(MAX_BYTES)
    return made


def log_bytes(path: Path) -> int:
    return path.with_name("state.db-wal").stat().st_size


def moved(path: Path) -> bool:
    """Whether the database itself has all rows."""
    with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as bare:
        return bool(bare.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]) and bool(
            bare.execute("SELECT count(*) FROM t").fetchone()[0]
        )


def mind_until_done(checkpoints: Checkpoints) -> None:
    for _ in range(10):
        checkpoints.join()
        if not checkpoints.mind():
            return
    raise AssertionError("it never comes to an end")


def test_a_short_log_is_left_alone(path: Path, writer: sqlite3.Connection, checkpoints: Checkpoints) -> None:
    writer.execute("INSERT INTO t VALUES (zeroblob(1000))")
    checkpoints.written(1000)
    assert not checkpoints.mind()
    assert not moved(path)


def test_a_long_log_is_moved_once(path: Path, writer: sqlite3.Connection, checkpoints: Checkpoints) -> None:
    writer.execute(f"INSERT INTO t VALUES (zeroblob({MAX_BYTES // 12}))")
    checkpoints.written(0)  # Nobody has counted what a purge writes.
    assert checkpoints.mind()
    mind_until_done(checkpoints)
    assert moved(path)
    assert MAX_BYTES // 16 < log_bytes(path) <= MAX_BYTES // 8, "it would not be looked at"


@pytest.mark.parametrize("share", [12, 4], ids=["moved beside the loop", "emptied at once"])
def test_what_a_reader_has_kept_from_it_is_moved_when_that_has_gone(
    path: Path, writer: sqlite3.Connection, checkpoints: Checkpoints, share: int
) -> None:
    writer.execute("PRAGMA busy_timeout = 0")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchall()
    writer.execute(f"INSERT INTO t VALUES (zeroblob({MAX_BYTES // share}))")
    checkpoints.written(0)
    for _ in range(3):
        assert checkpoints.mind()
        checkpoints.join()
    assert not moved(path)
    reader.close()
    mind_until_done(checkpoints)
    assert moved(path)


def test_room_at_the_end_of_the_file_is_given_back_although_the_log_is_short(
    path: Path, writer: sqlite3.Connection, checkpoints: Checkpoints
) -> None:
    writer.execute(f"INSERT INTO t VALUES (zeroblob({MAX_BYTES}))")
    checkpoints.written(MAX_BYTES)
    mind_until_done(checkpoints)
    assert path.stat().st_size > MAX_BYTES
    writer.executescript("DELETE FROM t; PRAGMA incremental_vacuum")
    assert log_bytes(path) <= MAX_BYTES // 16, "it would be moved for its length"
    checkpoints.written(0)
    mind_until_done(checkpoints)
    assert path.stat().st_size < MAX_BYTES // 16
