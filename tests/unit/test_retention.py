"""Retention: what is final and old or too much is forgotten, nothing else, and the file stays small."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pynenc.protocol.extras import NONE, Extras
from pynenc.protocol.messages import (
    NOT_RETRIABLE,
    Batch,
    Ending,
    Failure,
    Packing,
    Results,
    first_batch_of,
    invocation_number,
)
from pynenc.state_backend import queries
from pynenc.state_backend.migrations import SCHEMA_VERSION
from pynenc.state_backend.retention import Retention
from pynenc.state_backend.store import Store
from pynenc.supervisor import upkeep as upkeep_module
from pynenc.supervisor.upkeep import Upkeep
from tests.conftest import wait_until

DAY_S = 86400.0
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(str(tmp_path / "state.db"))
    yield opened
    opened.close()


class NoLargeResults:
    """All is in the database."""

    result_bytes = 0

    def results_dropped(self, numbers: Iterable[int]) -> None:
        assert not list(numbers)


def add(
    store: Store,
    batch: int,
    at: float,
    *,
    payload: bytes = b"x",
    extras: Extras = NONE,
    group: int = 0,
    count: int = 1,
    final: bool = True,
) -> None:
    """Keep a batch that was made at this time, and its outcomes."""
    task = store.add_task("m.f", "{}", "{}")
    store.add_batch(Batch(batch, task, count, group, 0, at, Packing.COLUMN, payload, extras.to_bytes()), extras)
    if final:
        store.add_results(Results(batch, 0, count, 1, Packing.COLUMN, at, 1.0, b"12345678" * count, payload))


def forget(retention: Retention, now: float, is_needed: Callable[[int], bool] = lambda batch: False) -> int:
    """Take steps until there is nothing more to do; how many there were."""
    retention.begin()
    steps = 1
    while retention.step(now, is_needed, 0.005):
        steps += 1
    return steps


def batches(store: Store) -> list[int]:
    return [row[0] for row in store._rows("SELECT id FROM batches ORDER BY id")]


def rows(store: Store, table: str) -> int:
    return int(store._rows(f"SELECT COUNT(*) FROM {table}")[0][0])


def test_calls_are_forgotten_when_they_ended_long_enough_ago(store: Store) -> None:
    first = first_batch_of(store.add_client(1))
    second = first_batch_of(store.add_client(2))
    for day in range(10):
        add(store, first + day, day * DAY_S)
        add(store, second + day, day * DAY_S + 1)
    store.commit()
    retention = store.retention(3 * DAY_S, None, NoLargeResults())
    forget(retention, 10 * DAY_S - 1)
    assert batches(store) == [first + 7, first + 8, first + 9, second + 7, second + 8, second + 9]
    assert rows(store, "results") == 6
    assert retention.next_due(10 * DAY_S - 1) == pytest.approx(1.0)
    forget(store.retention(None, None, NoLargeResults()), 10 * DAY_S)
    assert rows(store, "batches") == 6


def test_what_ended_lately_stays_however_long_ago_it_was_made(store: Store) -> None:
    batch = first_batch_of(store.add_client(1))
    task = store.add_task("m.f", "{}", "{}")
    store.add_batch(Batch(batch, task, 2, 0, 0, 0.0, Packing.COLUMN, b"x"))
    store.add_results(Results(batch, 0, 1, 1, Packing.COLUMN, 0.0, 1.0, b"12345678", b"r"))
    failed = (Ending.FAILED, NOT_RETRIABLE, 0.0, 9 * DAY_S, "E", "", "", b"")
    store.add_failure(Failure(batch, 1, 2, 1, 0, *failed))
    store.commit()
    retention = store.retention(2 * DAY_S, None, NoLargeResults())
    forget(retention, 10 * DAY_S)
    assert batches(store) == [batch]
    forget(retention, 12 * DAY_S)
    assert batches(store) == []
    assert rows(store, "failures") == 0


def test_what_is_shelved_stays_until_it_has_ended(store: Store) -> None:
    first = first_batch_of(store.add_client(1))
    add(store, first, 0.0, final=False)
    store.shelf.put([first])
    store.shelf.settle()
    store.commit()
    retention = store.retention(DAY_S, None, NoLargeResults())
    forget(retention, 9 * DAY_S)
    assert store.shelf.shelved() == [(first, 0)]
    store.add_results(Results(first, 0, 1, 1, Packing.COLUMN, DAY_S, 1.0, b"12345678", b"r"))
    store.commit()
    forget(retention, 9 * DAY_S)
    assert (rows(store, "batches"), rows(store, "shelved")) == (0, 0)


def test_what_is_unfinished_or_needed_stays(store: Store) -> None:
    first = first_batch_of(store.add_client(1))
    add(store, first, 0.0)
    add(store, first + 1, 0.0, final=False)
    add(store, first + 2, 0.0)
    add(store, first + 3, 0.0)
    store.commit()
    forget(store.retention(1.0, MIB, NoLargeResults()), DAY_S, lambda batch: batch == first + 2)
    assert batches(store) == [first + 1, first + 2]


def test_those_made_first_go_first_whoever_made_them(store: Store) -> None:
    early = first_batch_of(store.add_client(1))
    late = first_batch_of(store.add_client(2))
    for hour in range(8):
        add(store, early + hour, 2 * hour, payload=os.urandom(100_000))
        add(store, late + hour, 2 * hour + 1, payload=os.urandom(100_000))
    store.commit()
    retention = store.retention(None, 2 * MIB, NoLargeResults())
    forget(retention, 100.0)
    left = batches(store)
    kept = len(left) // 2
    assert 2 <= kept <= 5
    assert left == [*range(early + 8 - kept, early + 8), *range(late + 8 - (len(left) - kept), late + 8)]
    assert retention.stored_bytes() <= 0.75 * 2 * MIB
    store.checkpoints.empty_log()
    assert not retention.is_behind()


def test_cache_keys_and_common_arguments_go_with_the_last_that_needs_them(store: Store) -> None:
    first = first_batch_of(store.add_client(1))
    common = store.add_common_arguments(b"shared")
    keys = [bytes([index]) * 16 for index in range(4)]
    for index in range(2):
        extras = Extras(cache=keys[2 * index] + keys[2 * index + 1], common=common)
        add(store, first + index, index * DAY_S, count=2, extras=extras, group=first)
    store.commit()
    assert rows(store, "cache_keys") == 4
    retention = store.retention(1.5 * DAY_S, None, NoLargeResults())
    forget(retention, 2 * DAY_S)
    assert batches(store) == [first + 1]
    assert [row[0] for row in store._rows("SELECT key FROM cache_keys ORDER BY key")] == keys[2:]
    assert store.common_arguments(common) == b"shared"
    forget(retention, 4 * DAY_S)
    assert [rows(store, table) for table in ("batches", "cache_keys", "common_arguments")] == [0, 0, 0]


def test_a_named_group_is_forgotten_as_a_whole(store: Store) -> None:
    first = first_batch_of(store.add_client(1))
    later = first_batch_of(store.add_client(2))
    items = Extras(items=b"\0\0\0\0")
    assert store.name_group("m.f", "census", first) == first
    add(store, first, 0.0, extras=items, group=first)
    add(store, first + 1, 0.0, extras=items, group=first)
    add(store, later, 5 * DAY_S, extras=items, group=first)
    store.commit()
    retention = store.retention(2 * DAY_S, None, NoLargeResults())
    forget(retention, 6 * DAY_S)  # It was gone on with yesterday.
    assert len(batches(store)) == 3
    forget(retention, 8 * DAY_S, lambda number: number == first)  # Somebody goes on with it now.
    assert len(batches(store)) == 3
    assert store.name_group("m.f", "census", later) == first
    forget(retention, 8 * DAY_S)
    assert [rows(store, table) for table in ("batches", "named_groups", "named_batches")] == [0, 0, 0]
    assert store.name_group("m.f", "census", later) == later


def test_clients_of_earlier_supervisors_are_forgotten_with_their_last_batch(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = Store(path)
    for day in range(5):
        add(store, first_batch_of(store.add_client(day)), day * DAY_S)
    store.close()
    store = Store(path)
    mine = store.add_client(9)
    store.commit()
    forget(store.retention(2.5 * DAY_S, None, NoLargeResults()), 5 * DAY_S)
    assert [row[0] for row in store._rows("SELECT id FROM clients ORDER BY id")] == [4, 5, mine]
    assert store.add_client(10) == mine + 1
    store.close()


def test_steps_are_short_and_the_file_gets_smaller(store: Store, tmp_path: Path) -> None:
    first = first_batch_of(store.add_client(1))
    for number in range(2000):
        add(store, first + number, float(number), payload=os.urandom(8000))
    store.commit()
    store.checkpoints.empty_log()
    large = (tmp_path / "state.db").stat().st_size
    retention = store.retention(100.0, None, NoLargeResults())
    took = []
    began = time.perf_counter()
    while retention.step(1e6, lambda batch: False, 0.005):
        took.append(time.perf_counter() - began)
        began = time.perf_counter()
    assert len(took) > 5
    assert sorted(took)[len(took) // 2] < 0.1
    store.checkpoints.empty_log()
    assert batches(store) == []
    assert large > 30_000_000
    assert (tmp_path / "state.db").stat().st_size < 2_000_000


def test_a_purge_makes_the_file_small_also_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as connection:  # As the first versions made it: its pages are not given back in steps.
        schema = (Path(queries.__file__).parent / "schema.sql").read_text()
        connection.executescript(f"{schema} PRAGMA user_version = {SCHEMA_VERSION};")
    connection.close()
    store = Store(str(path))
    first = first_batch_of(store.add_client(1))
    for number in range(500):
        add(store, first + number, 0.0, payload=os.urandom(4000), final=number % 2 == 0)
    store.commit()
    store.checkpoints.empty_log()
    assert path.stat().st_size > 3_000_000
    store.purge()
    assert path.stat().st_size < 300_000
    assert store._rows("PRAGMA auto_vacuum") == [(2,)]
    add(store, first + 1000, 0.0)
    store.commit()
    assert batches(store) == [first + 1000]
    store.close()


def test_a_failed_step_forgets_nothing_and_begins_anew(store: Store, tmp_path: Path) -> None:
    from pynenc.exceptions import StateBackendError

    first = first_batch_of(store.add_client(1))
    add(store, first, 0.0)
    store.commit()
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    retention = store.retention(1.0, None, NoLargeResults())
    with pytest.raises(StateBackendError, match="was not made smaller: another program holds it locked"):
        forget(retention, DAY_S)
    assert batches(store) == [first]
    other.execute("ROLLBACK")
    other.close()
    forget(retention, DAY_S)
    assert batches(store) == []


class Later:
    """A loop that has been asked to call something."""

    def call_in(self, _: float, call: Callable[[], None]) -> None:
        self.call = call

    def go_on(self, times: int) -> None:
        for _ in range(times):
            self.call()


class Idle:
    """A supervisor that has nothing to do."""

    held_back = False
    needs_all = False

    @property
    def commits(self) -> Idle:
        return self

    def needed_batches(self) -> Callable[[int], bool]:
        return lambda batch: self.needs_all


@pytest.mark.parametrize("hindrance", ["a reader", "a writer", "a full disk", "a slow client"])
def test_what_was_hindered_is_done_later_also_when_nobody_calls_anything(
    store: Store, tmp_path: Path, hindrance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, idle = Later(), Idle()
    upkeep = Upkeep(later, store, idle, NoLargeResults(), None, MIB)  # type: ignore[arg-type]
    first = first_batch_of(store.add_client(1))
    for number in range(first, first + 30):
        add(store, number, 0.0, payload=os.urandom(50_000))
        store.commit()
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    if hindrance == "a full disk":
        idle.held_back = True
    elif hindrance == "a slow client":
        idle.needs_all = True
        monkeypatch.setattr(upkeep_module, "IDLE_S", 0.05)
    else:
        other.execute("BEGIN IMMEDIATE" if hindrance == "a writer" else "BEGIN")
        other.execute("SELECT COUNT(*) FROM batches").fetchone()
    upkeep.begin()
    later.go_on(20)

    def is_small() -> bool:
        return (tmp_path / "state.db-wal").stat().st_size <= MIB / 8 and (tmp_path / "state.db").stat().st_size < MIB

    assert not is_small()
    other.rollback()
    other.close()
    idle.held_back = idle.needs_all = False

    def has_ended() -> bool:
        later.go_on(1)
        return upkeep._due == float("inf")

    wait_until(has_ended, "nothing more is to be done")
    wait_until(is_small, "a thread moves the log")


def test_a_week_of_work_does_not_let_the_database_grow_without_bound(tmp_path: Path) -> None:
    """Six supervisors a day, three scripts each, and one client that stays all week; by size and by age."""
    chance = random.Random(7)
    path = tmp_path / "state.db"
    limit = 2 * MIB
    largest = total = 0
    numbers: dict[int, int] = {}
    service = 0
    now = 1_000_000.0
    for hour in range(0, 7 * 24, 4):
        store = Store(str(path))
        retention = store.retention(5 * DAY_S, limit, NoLargeResults())
        service = service or store.add_client(1)
        for client in [service, *(store.add_client(1) for _ in range(3))]:
            for _ in range(chance.randrange(5, 30)):
                number = first_batch_of(client) + numbers.get(client, 0)
                numbers[client] = numbers.get(client, 0) + 1
                payload = os.urandom(chance.choice((10, 1000, 20_000)))
                total += 2 * len(payload)
                add(store, number, now, payload=payload, count=chance.randrange(1, 500), final=chance.random() < 0.999)
                now += chance.uniform(1, 60)
            store.commit()
            forget(retention, now)
            store.checkpoints.mind()
        now = 1_000_000.0 + (hour + 4) * 3600
        store.close()
        largest = max(largest, path.stat().st_size)
    assert total > 6 * limit
    assert largest <= limit
    store = Store(str(path))
    kept = batches(store)
    assert len(kept) > 50
    assert rows(store, "clients") < 250
    assert rows(store, "results") <= len(kept)
    made = [row[0] for row in store._rows("SELECT registered FROM batches ORDER BY registered")]
    unfinished = len(kept) - rows(store, "results")
    assert made[unfinished] > now - 5 * DAY_S - 3600
    store.close()


class LargeResultsOf:
    """Each of these invocations has a result of so many bytes beside the database."""

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = sizes
        self.dropped: list[int] = []

    @property
    def result_bytes(self) -> int:
        return sum(self.sizes.values())

    def results_dropped(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.dropped.append(number)
            del self.sizes[number]


def test_large_results_count_and_go_with_their_calls(store: Store) -> None:
    first = first_batch_of(store.add_client(1))
    large = LargeResultsOf({invocation_number(first + day, 0): 40 * MIB for day in range(10)})
    for day in range(10):
        add(store, first + day, day * DAY_S)
        store.add_blobs(1, invocation_number(first + day, 0), [(b"%d" % day, 40 * MIB)])
    store.add_blobs(0, first, [(b"arguments", MIB)])
    store.commit()
    forget(store.retention(None, 400 * MIB, large), 10 * DAY_S)
    assert batches(store) == [first + day for day in range(3, 10)]  # Three quarters of what is allowed.
    assert large.dropped == [invocation_number(first + day, 0) for day in range(3)]
    assert rows(store, "blobs") == 8
    forget(store.retention(DAY_S, None, large), 20 * DAY_S)
    assert not batches(store)
    assert not large.sizes
