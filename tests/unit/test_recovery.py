"""What is taken up with a batch: those unfinished ones whose results its calls take, before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pynenc.protocol.extras import Dependency, Extras, dependencies_column
from pynenc.protocol.messages import NOT_RETRIABLE, Batch, Ending, Failure, Packing, Results, first_batch_of
from pynenc.state_backend.store import Store
from pynenc.supervisor.endings import Endings
from pynenc.supervisor.events import BatchRecovered, Event
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.recovery import Recovery, Resumption
from pynenc.supervisor.task import Task

CLIENTS = 5000


class Left:
    """What a supervisor has left of many clients, each with one batch of one call, and the next one's recovery."""

    def __init__(self, path: str) -> None:
        self.store = Store(path)
        self.task = self.store.add_task("m.f", "{}", "{}")
        for _ in range(10):
            self.store.add_client(1)
        self.events: list[Event] = []
        self.kept: list[Failure] = []
        tasks: dict[int, Task] = {}
        self.orchestrator = Orchestrator(0.02)
        self.recovery = Recovery(
            self.store,
            self.orchestrator,
            Payloads(self.store, 1 << 20),
            Endings(self.store, None, tasks, {}, None),  # type: ignore[arg-type]
            tasks,
            self.events.append,
            self.keep,
            lambda batch: None,
        )

    def keep(self, failure: Failure) -> None:
        self.kept.append(failure)
        self.store.add_failure(failure)

    def add(self, client: int, *on: int, parent: int = 0) -> int:
        batch = first_batch_of(client)
        column = dependencies_column([Dependency(0, first_batch_of(one), 0, 1) for one in on])
        extras = Extras(dependencies=column)
        row = Batch(batch, self.task, 1, 0, parent, 1.0, Packing.COLUMN, b"args", extras.to_bytes())
        self.store.add_batch(row, extras)
        return batch

    def succeed(self, client: int) -> None:
        batch = first_batch_of(client)
        self.store.add_results(Results(batch, 0, 1, 1, Packing.COLUMN, 1.0, 0.5, b"12345678", b"r"))

    def recovered(self) -> list[int]:
        """The clients whose batches were taken up, in order."""
        return [one.batch.batch // first_batch_of(1) for one in self.events if isinstance(one, BatchRecovered)]

    def finish(self) -> None:
        while self.recovery.has_work:
            self.store.commit()
            self.recovery.step()


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    made = Left(str(tmp_path / "state.db"))
    yield made
    made.store.close()


def test_whoever_comes_first_brings_what_its_calls_take(left: Left) -> None:
    mine = left.add(1, 2, 4)
    left.add(2, 3)
    left.add(3)
    left.add(4)
    left.succeed(4)
    left.store.commit()
    left.recovery.begin()
    assert left.recovery.adopt(1, mine) == (True, [])
    assert left.recovered() == [3, 2, 1]
    left.finish()
    assert left.recovered() == [3, 2, 1], "each is taken up once"


def test_so_does_the_search(left: Left) -> None:
    left.add(1, 2)
    left.add(2)
    left.store.commit()
    left.recovery.begin()
    left.finish()
    assert left.recovered() == [2, 1]


def test_a_chain_may_be_long_and_a_circle_ends(left: Left) -> None:
    for client in range(1, CLIENTS):
        left.add(client, client + 1)
    left.add(CLIENTS, 1)
    left.store.commit()
    left.recovery.begin()
    left.recovery.adopt(1, first_batch_of(1))
    assert left.recovered() == list(range(CLIENTS, 0, -1))


def test_a_new_batch_brings_what_was_not_found_yet(left: Left) -> None:
    on = {left.add(1), left.add(2)}
    left.succeed(2)
    left.store.commit()
    left.recovery.take_up_for(on)
    assert left.recovered() == [], "nothing was left by anybody who was killed"
    left.recovery.begin()
    left.recovery.take_up_for(on)
    assert left.recovered() == [1]
    left.recovery.take_up_for(on)
    left.finish()
    assert left.recovered() == [1]


def test_what_has_just_ended_is_not_taken_up(left: Left) -> None:
    on = left.add(1)
    left.store.commit()
    left.recovery.begin()
    left.succeed(1)
    left.recovery.take_up_for([on])
    assert left.recovered() == []


def test_what_is_shelved_comes_with_what_is_shelved_and_asked_for(left: Left) -> None:
    mine, on = left.add(1, 2), left.add(2)
    left.store.shelf.put([mine, on])
    left.store.commit()
    left.recovery.begin()
    left.recovery.take_up_for([on])
    assert left.recovered() == [], "nobody has asked for it"
    left.recovery.adopt(1, mine)
    assert left.recovered() == [2, 1]


def test_what_is_not_shelved_brings_nothing_that_is(left: Left) -> None:
    mine, on = left.add(1, 2), left.add(2)
    left.store.shelf.put([on])
    left.store.commit()
    left.recovery.begin()
    left.recovery.adopt(1, mine)
    left.finish()
    assert left.recovered() == [1]


def test_what_is_made_anew_ends_and_brings_nothing(left: Left) -> None:
    mine = left.add(1, 2)
    made = left.add(2, 3, parent=left.add(4) << 10)
    on = left.add(3)
    left.store.shelf.put([mine, made, on])
    left.store.commit()
    left.recovery.begin()
    left.recovery.adopt(1, mine)
    assert left.recovered() == [1]
    assert [(one.batch, one.ending) for one in left.kept] == [(made, Ending.CANCELLED)]
    assert left.kept[0].retry_s == NOT_RETRIABLE


def test_a_resumption_is_told_of_when_the_rules_know_its_batches(left: Left) -> None:
    batch = left.add(1)
    left.store.commit()
    left.recovery.begin()
    told: list[list[tuple[int, int]]] = []
    left.recovery.resume(Resumption(2, lambda ranges, counts: told.append(ranges), lambda: None))
    for _ in range(5):
        left.recovery.step()
    assert left.recovered() == [1]
    assert not told
    for event in left.events:
        left.orchestrator.handle(event)
    left.recovery.arrived()
    left.recovery.step()
    assert told == [[(batch, batch + 1)]]
    assert [one.left for one in left.recovery.resumptions] == [1]
