"""Random references and deaths: what is referred to is there and whole, and in the end nothing is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pynenc import context
from pynenc.blobs import reading
from pynenc.blobs.directory import BlobDirectory
from pynenc.blobs.references import Reference, to_column, with_references
from pynenc.blobs.writing import Writer
from pynenc.protocol.messages import Packing, Results, invocation_number, rows_payload
from pynenc.state_backend.store import Store
from pynenc.supervisor.blobs import Blobs
from tests import examples

SIZE = 4096
WRITERS = 3
indices = st.integers(0, 1 << 30)


class Timers:
    """Stands for the loop: timers go off when the test says."""

    def __init__(self) -> None:
        self._due: list[Any] = []

    def call_in(self, seconds: float, callback: Any) -> None:
        self._due.append(callback)

    def go_off(self) -> None:
        due, self._due = self._due, []
        for callback in due:
            callback()


class Model(RuleBasedStateMachine):
    """A supervisor's blobs, with real files, beside a model: which blob has which content, and who refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.database = str(self.place / "model.db")
        self.store = Store(self.database)
        self.directory = BlobDirectory(self.database)
        context.databases[self.database] = None
        self.timers = Timers()
        self.blobs = self.begin()
        self.writers = [Writer(self.directory, 8 * SIZE) for _ in range(WRITERS)]
        self.content: dict[Reference, bytes] = {}
        self.written: list[tuple[int, Reference]] = []  # And nobody was told.
        self.batches: dict[int, list[Reference]] = {}
        self.results: dict[int, list[Reference]] = {}
        self.clients: dict[int, list[Reference]] = {}
        self.mapped: list[tuple[Reference, memoryview]] = []
        self.number = 0

    def begin(self) -> Blobs:
        blobs = Blobs(self.directory, self.store, 8 * SIZE)
        blobs.loop = self.timers  # type: ignore[assignment]
        return blobs

    def turn(self) -> None:
        self.store.commit()
        if self.blobs.is_due:
            self.blobs.turn_over()

    def known(self) -> list[Reference]:
        held = [*self.batches.values(), *self.results.values(), *self.clients.values()]
        found = {reference for one in held for reference in one}
        return [reference for reference in self.content if reference in found]  # In an order without chance.

    def some(self, index: int) -> list[Reference]:
        """One that was just written, if there is one, and one that is there."""
        taken = [self.written.pop(index % len(self.written))[1]] if self.written else []
        known = self.known()
        return taken + ([known[index % len(known)]] if known else [])

    @rule(writer=st.integers(0, WRITERS - 1), pages=st.integers(1, 3))
    def write(self, writer: int, pages: int) -> None:
        self.number += 1
        content = self.number.to_bytes(4, "little") * (pages * SIZE // 4)
        reference = self.writers[writer].write(memoryview(content))
        self.content[reference] = content
        self.written.append((writer, reference))

    @rule(index=indices)
    def batch_comes(self, index: int) -> None:
        if taken := self.some(index):
            self.number += 1
            self.blobs.batch_came(self.number, to_column(taken))
            self.batches[self.number] = taken
            self.turn()

    @precondition(lambda self: self.batches)
    @rule(index=indices)
    def batch_finishes(self, index: int) -> None:
        number = list(self.batches)[index % len(self.batches)]
        del self.batches[number]
        self.blobs.batch_finished(number)
        self.turn()

    @rule(index=indices, kept=st.booleans())
    def results_come(self, index: int, kept: bool) -> None:
        taken = [self.written.pop(index % len(self.written))[1]] if self.written else []
        if taken:
            self.number += 1
            packing, payload = with_references(Packing.ROWS, rows_payload([b"row"]), taken)
            results = self.blobs.results_came(Results(self.number, 0, 1, 1, packing, 0.0, 0.0, b"", payload))
            assert results.payload == rows_payload([b"row"])
            if kept:
                self.blobs.results_kept(results)
                self.results[invocation_number(self.number, 0)] = taken
            self.turn()

    @precondition(lambda self: self.results)
    @rule(index=indices)
    def results_are_dropped(self, index: int) -> None:
        number = list(self.results)[index % len(self.results)]
        del self.results[number]
        self.blobs.results_dropped([number])
        self.turn()

    @rule(index=indices, client=st.integers(1, 2))
    def client_holds(self, index: int, client: int) -> None:
        if taken := self.some(index):
            self.blobs.client_holds(client, to_column(taken))
            self.clients.setdefault(client, []).extend(taken)

    @precondition(lambda self: self.clients)
    @rule(index=indices)
    def client_releases(self, index: int) -> None:
        client = list(self.clients)[index % len(self.clients)]
        released = self.clients[client][: 1 + index % 2]
        self.clients[client] = [one for one in self.clients[client] if one not in released]
        self.blobs.client_releases(client, to_column(released))
        self.turn()

    @rule(client=st.integers(1, 2))
    def client_leaves(self, client: int) -> None:
        self.clients.pop(client, None)
        self.blobs.client_left([client])
        self.turn()

    @rule(writer=st.integers(0, WRITERS - 1))
    def writer_dies(self, writer: int) -> None:
        self.writers[writer].after_fork_in_child()  # Closes its mark, as the system does, and nothing else.
        self.written = [one for one in self.written if one[0] != writer]
        self.blobs.somebody_died()
        self.turn()

    @rule()
    def supervisor_dies(self) -> None:
        self.timers = Timers()
        self.blobs = self.begin()
        self.clients.clear()  # They come over and say anew what they hold; these died, too.

    @rule()
    def time_passes(self) -> None:
        self.timers.go_off()

    @rule()
    def purge(self) -> None:
        self.store.purge()
        self.blobs.purge()
        self.batches.clear()
        self.results.clear()
        self.turn()

    @precondition(lambda self: self.known())
    @rule(index=indices)
    def somebody_maps(self, index: int) -> None:
        reference = self.known()[index % len(self.known())]
        self.mapped.append((reference, reading.view_of(reference)))

    @precondition(lambda self: self.mapped)
    @rule(index=indices)
    def somebody_unmaps(self, index: int) -> None:
        self.mapped.pop(index % len(self.mapped))[1].release()

    @invariant()
    def what_is_referred_to_is_whole(self) -> None:
        for reference in [*self.known(), *(one for _, one in self.written)]:
            fd = self.directory.open(reference.name)
            assert fd is not None, f"{reference} is gone"
            assert os.pread(fd, reference.size, 0) == self.content[reference]
            os.close(fd)

    @invariant()
    def what_is_mapped_is_whole(self) -> None:
        for reference, view in self.mapped:
            assert view == self.content[reference]

    def teardown(self) -> None:
        try:
            kept = {one.name for held in (*self.batches.values(), *self.results.values()) for one in held}
            for writer in self.writers:
                writer.after_fork_in_child()
            self.turn()
            self.blobs.close()
            assert set(self.directory.blobs()) == kept
            assert not os.path.exists(self.directory.memory)
            for view in self.mapped:
                assert view[1] == self.content[view[0]]
            self.blobs = self.begin()
            self.blobs.purge()
            self.blobs.close()
            assert not os.path.exists(self.directory.files)
        finally:
            self.mapped.clear()
            self.store.close()
            del context.databases[self.database]
            shutil.rmtree(self.place)


TestBlobs = Model.TestCase
TestBlobs.settings = settings(max_examples=examples(60), stateful_step_count=40)
