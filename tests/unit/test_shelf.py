"""What is left unfinished: every batch that is not finished is shelved, or its client is above the mark."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pynenc.protocol.messages import NOT_RETRIABLE, Batch, Ending, Failure, Packing, Results, first_batch_of
from pynenc.state_backend import shelf as shelves
from pynenc.state_backend.reader import Reader
from pynenc.state_backend.shelf import Shelf
from pynenc.state_backend.store import Store
from pynenc.supervisor.groups import Groups


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


def add_batch(store: Store, client: int, at: int = 0, count: int = 4, parent: int = 0) -> int:
    number = first_batch_of(client) + at
    store.add_batch(Batch(number, store.add_task("m.f", "{}", "{}"), count, 0, parent, 1.0, Packing.COLUMN, b"args"))
    return number


def succeed(store: Store, batch: int, first: int, stop: int) -> None:
    store.add_results(Results(batch, first, stop, 1, Packing.COLUMN, 1.0, 0.5, b"12345678" * (stop - first), b"r"))


def fail(store: Store, batch: int, first: int, stop: int, ending: Ending = Ending.FAILED) -> None:
    times = (1.0, 2.0)
    store.add_failure(Failure(batch, first, stop, 1, 0, ending, NOT_RETRIABLE, *times, "ValueError", "", "", b""))


def found(shelf: Shelf) -> list[tuple[int, int]]:
    """All that a supervisor finds when the one before it was killed."""
    rows: list[tuple[int, int]] = []
    last: int | None = shelf.first_unsettled - 1
    while last is not None:
        more, last = shelf.unfinished_after(last)
        rows += more
    return rows


def test_what_is_unfinished_is_found_above_the_mark(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "STRETCH", 2)
    store = Store(path)
    clients = [store.add_client(1) for _ in range(4)]
    done, half, retried, fresh, failed = (add_batch(store, client) for client in (*clients, clients[3] + 10))
    child = add_batch(store, clients[1], 5, parent=half << 10)
    succeed(store, done, 0, 3)
    fail(store, done, 3, 4)
    succeed(store, half, 1, 3)
    succeed(store, retried, 0, 3)
    fail(store, retried, 3, 4, Ending.RETRY)
    fail(store, failed, 0, 4, Ending.CANCELLED)
    store.commit()
    assert found(store.shelf) == [(half, 0), (child, half << 10), (retried, 0), (fresh, 0)]
    store.shelf.put([half])
    assert [batch for batch, _ in found(store.shelf)] == [child, retried, fresh]
    assert store.shelf.shelved() == [(half, 0)]
    store.shelf.settle(clients[2] + 1)
    assert [batch for batch, _ in found(store.shelf)] == [fresh]
    store.shelf.settle(clients[0])
    assert [batch for batch, _ in found(store.shelf)] == [fresh], "the mark does not sink by that"
    store.close()
    assert [batch for batch, _ in found(Store(path).shelf)] == [fresh], "it is kept"


def test_what_is_taken_from_the_shelf_is_found_when_that_supervisor_is_killed(path: str) -> None:
    store = Store(path)
    first, second = store.add_client(1), store.add_client(2)
    batches = [add_batch(store, first), add_batch(store, second), add_batch(store, second, 1)]
    store.commit()
    store.shelf.put(batches)
    store.shelf.settle()
    assert not found(store.shelf)
    assert Reader(path).count_kept() == 12
    assert store.shelf.take([batches[1], batches[2] + 1]) == {batches[1]}
    assert found(store.shelf) == [(batches[1], 0)]
    assert [batch for batch, _ in store.shelf.shelved()] == [batches[0], batches[2]]
    store.shelf.unsettle(first)
    assert found(store.shelf) == [(batches[1], 0)], "what is shelved stays so"
    assert store.shelf.take([]) == set()
    store.purge()
    assert Reader(path).count_kept() == 0


def test_outcomes_are_known_by_their_invocation(path: str) -> None:
    store = Store(path)
    batch = add_batch(store, store.add_client(1), parent=77)
    succeed(store, batch, 0, 2)
    fail(store, batch, 2, 3)
    fail(store, batch, 3, 4, Ending.RETRY)
    store.commit()
    assert [store.shelf.has_ended(batch << 10 | index) for index in range(4)] == [True, True, True, False]
    assert store.shelf.parent_of(batch) == 77
    assert store.shelf.parent_of(batch + 1) is None
    assert [tuple(one) for one in store.shelf.counts_of([(batch, batch + 1)])] == [("m.f", 4, 2, 1)]
    assert store.shelf.counts_of([(batch + 1, batch + 9)]) == []


def test_an_older_database_keeps_what_is_unfinished_until_somebody_asks(path: str) -> None:
    store = Store(path)
    client = store.add_client(1)
    done, half = add_batch(store, client), add_batch(store, client, 1)
    succeed(store, done, 0, 4)
    succeed(store, half, 0, 2)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE shelved; DROP TABLE settled; DROP TABLE blobs; PRAGMA user_version = 2")
    connection.close()
    shelf = Store(path).shelf
    assert shelf.shelved() == [(half, 0)]
    assert not found(shelf)
    assert shelf.first_unsettled == first_batch_of(client + 1)


def test_one_client_at_a_time_makes_a_group() -> None:
    groups, told = Groups(), []
    for client in (1, 2, 1, 3, 4):
        groups.claim(7, client, lambda client=client: told.append(client))  # type: ignore[misc]
    groups.claim(8, 2, lambda: told.append(80))
    assert told == [1, 1, 80]
    groups.forget(3)
    groups.release(7, 2)
    assert told == [1, 1, 80], "it is not its turn"
    groups.release(7, 1)
    assert told == [1, 1, 80, 2]
    groups.forget(2)
    assert told == [1, 1, 80, 2, 4]
    groups.release(7, 4)
    groups.claim(7, 5, lambda: told.append(5))
    assert told[-1] == 5
