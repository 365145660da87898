"""The state backend: what is committed is there, versions are told apart, nothing is written twice."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pynenc.exceptions import StateBackendError
from pynenc.protocol.messages import NOT_RETRIABLE, Batch, Ending, Failure, Packing, Results, first_batch_of
from pynenc.state_backend.reader import Reader
from pynenc.state_backend.store import Store


def results(batch: int, first: int, stop: int, payload: bytes = b"r") -> Results:
    return Results(batch, first, stop, 1, Packing.COLUMN, 1.0, 0.5, b"12345678" * (stop - first), payload)


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store, reader = Store(path), Reader(path)
    client = store.add_client(123)
    assert store.add_client(124) == client + 1
    task = store.add_task("m.f", "{}", "{}")
    assert store.add_task("m.f", "{}", "{}") == task
    assert store.add_task("m.f", "{}", "other") != task
    batch = first_batch_of(client)
    store.add_batch(Batch(batch, task, 5, 0, 0, 2.0, Packing.COLUMN, b"args"))
    assert reader.batch(batch) is None
    store.commit()
    stored = reader.batch(batch)
    assert stored is not None
    assert (stored.task_id, stored.count, stored.arguments) == ("m.f", 5, b"args")
    failure = Failure(
        batch, 2, 3, 1, 0, Ending.FAILED, NOT_RETRIABLE, 1.0, 2.0, "ValueError", "no", "Traceback", b"pickle"
    )
    store.add_results(results(batch, 0, 2))
    store.add_failure(failure)
    store.add_results(results(batch, 3, 5))
    store.commit()
    assert reader.outcomes_of(batch) == ([results(batch, 0, 2), results(batch, 3, 5)], [failure])
    assert reader.outcomes_of(batch + 1) == ([], [])
    assert store.outcomes_of(batch) == reader.outcomes_of(batch)
    assert reader.counts_by_task()[0] == ("m.f", 5, 4, 1)
    assert store.arguments(batch) == b"args"
    store.purge()
    assert reader.batch(batch) is None
    assert store.add_client(125) == client + 2
    reader.close()
    store.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state.db"))
    task = store.add_task("m.f", "{}", "{}")
    for payload in (b"first", b"second"):
        store.add_batch(Batch(1 << 29, task, 1, 0, 0, 1.0, Packing.COLUMN, payload))
        store.add_results(results(1 << 29, 0, 1, payload))
        store.commit()
    assert store.arguments(1 << 29) == b"first"
    assert store.outcomes_of(1 << 29)[0][0].payload == b"first"
    store.close()


def test_a_later_schema_is_refused_by_writer_and_reader(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    for opened in (lambda: Store(str(path)), lambda: Reader(str(path)).batch(1)):
        with pytest.raises(StateBackendError, match="schema version 7"):
            opened()


def test_a_reader_may_come_before_the_database(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    reader = Reader(path)
    assert reader.batch(1) is None
    store = Store(path)
    assert reader.counts_by_task() == []
    reader.close()
    store.close()


def test_a_failed_commit_writes_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = Store(path)
    store._connection.execute("PRAGMA busy_timeout = 0")
    task = store.add_task("m.f", "{}", "{}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.add_batch(Batch(1 << 29, task, 1, 0, 0, 1.0, Packing.COLUMN, b"args"))
    with pytest.raises(StateBackendError, match="did not take a commit: another program holds it locked"):
        store.commit()
    other.execute("ROLLBACK")
    other.close()
    store.commit()
    assert store.arguments(1 << 29) == b"args"
    store.close()


@pytest.mark.parametrize("dies_at", ["fsync", "rename"])
def test_a_database_begins_whole_or_not_at_all_whenever_its_maker_is_killed(tmp_path: Path, dies_at: str) -> None:
    path = tmp_path / "state.db"
    maker = (
        "import os, signal, sys\n"
        "from pynenc.state_backend.store import Store\n"
        f"os.{dies_at} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store(sys.argv[1])"
    )
    died = subprocess.run([sys.executable, "-c", maker, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db.new"]
    store = Store(str(path))
    assert store.set_aside == ""
    assert store.add_client(1) == 1
    store.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize("refused", ["fsync", "rename"])
def test_a_database_begins_where_files_can_be_neither_renamed_nor_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, refused, refuse)
    store = Store(str(tmp_path / "state.db"))
    assert store.add_client(1) == 1
    store.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


def test_a_log_without_its_database_is_not_taken_for_that_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store(str(path))
    store.add_client(1)
    store.commit()
    log = path.with_name("state.db-wal").read_bytes()
    store.close()
    path.unlink()
    path.with_name("state.db-wal").write_bytes(log)
    store = Store(str(path))
    assert store.add_client(1) == 1
    store.close()
