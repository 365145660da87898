"""The worker process: read leases, run them, ship what came out, until the connection closes."""

from __future__ import annotations

import io
import mmap
import os
import socket
import sys
import time
from collections import deque
from functools import partial
from typing import Any

from pynenc import context
from pynenc.blobs import reading
from pynenc.blobs.directory import BlobDirectory
from pynenc.blobs.freezing import Freezer
from pynenc.blobs.writing import Writer
from pynenc.protocol.messages import Kind, Lease, number_frame
from pynenc.protocol.slots import POSITION, STARTED, Slot
from pynenc.system.directory import call_in
from pynenc.system.spin import Spin
from pynenc.worker import lease as leases
from pynenc.worker.base import BaseWorker, Output, directory_of, let_calls_leave
from pynenc.worker.nesting import Nesting

KEEP_MS = 3
"""A worker that has had nothing to do for so long lets go of the blobs that it maps."""

IMPORT_S = 60.0
"""An import that takes longer counts as time of the call for which it is made, so that its limit ends one that hangs."""

NO_POSITION = 1 << 63
"""Behind all that a worker can be leased."""


class Worker(BaseWorker):
    """Runs leases one after the other, in the order in which they come.

    Attributes:
        paused: How many calls wait here for others, which run on top of them.
    """

    def __init__(self, number: int, connection: socket.socket, slot: Slot, freezer: Freezer) -> None:
        super().__init__(number, connection, slot, freezer)
        self.spin = Spin()
        self.paused = 0
        self._leases: deque[Lease | Output] = deque()
        self._dropped_to = 0
        self._switched: Kind | None = None
        self._kept = reading.recent = reading.Recent()
        self.shipper = leases.Shipper(self.send, number, freezer.freeze)
        context.nested_wait = Nesting(self).wait

    def run(self) -> None:
        """Run leases until the supervisor closes the connection."""
        while self._receive():
            while self._take_one():
                if not self._leases and self._more_has_come() and not self._receive():
                    return
            self.shipper.ship()
            self.shipper.unwatch()
            self._forget_common_arguments()

    def _take_one(self) -> bool:
        if not self._leases:
            return False
        following = self._leases.popleft()
        if isinstance(following, Output):
            following.use()
        else:
            self._run_one(following)
        return True

    # For a call that waits; see `nesting`.

    def run_next(self) -> bool:
        """Run what was leased next, if anything was, and ship what came out when that was all."""
        if not self._take_one():
            return False
        if not self._leases:
            self.shipper.ship()
        return True

    def switch(self, message: bytes, answer: Kind) -> None:
        """Tell the supervisor that a call waits or goes on. What was leased before its answer is not to be run."""
        self.send(message)
        self._switched = None
        while self._switched != answer:
            self.receive_or_end()

    def receive_or_end(self) -> None:
        """Read what the supervisor sends; when it has gone, so is this process, in the middle of a call."""
        if not self._receive():
            os._exit(1)

    def _run_one(self, lease: Lease) -> None:
        if self._leases or lease.stop - lease.first > 1:
            self.shipper.watch()
        self._kept.turn()
        declared = self._tasks[lease.task]
        clash = self.clash(declared)
        if clash is not None and not (clash.is_edited and self.paused):  # Below it the file is run as it was, too.
            self._be_replaced(lease)
            return
        # To import its module and to unpickle what its calls share runs user code, of which this process may die. It is not the
        # call's time: one with a short limit would never come to its end in a fresh worker, however often it is tried again.
        self.slot.times[STARTED], self.slot.numbers[POSITION] = time.monotonic() + IMPORT_S, lease.position
        try:
            directory = directory_of(lease, declared)
            self.load(declared, directory)
            func: Any = declared.func
            if declared.strays:
                func = partial(call_in, directory, func)
            func = self.function_for(declared, func, lease)
        except BaseException as error:  # importing runs user code
            dropped_to = leases.fail(lease, error, self.slot, self.shipper)
        else:
            dropped_to = leases.run(lease, declared, func, self.slot, self.shipper)
        if dropped_to is not None:
            self._dropped_to = dropped_to
            self._leases = deque(one for one in self._leases if isinstance(one, Output) or one.position >= dropped_to)

    def _be_replaced(self, lease: Lease) -> None:
        """Have a fresh worker run this and all that follows; when this one is told so, it ends."""
        self.shipper.ship()
        self.send(number_frame(Kind.UNFIT, lease.position))
        self._dropped_to = NO_POSITION
        self._leases = deque(one for one in self._leases if isinstance(one, Output))

    def _receive(self) -> bool:
        """Wait for what the supervisor sends; False when it has gone."""
        if (self._kept or self._mapping) and not self.poll.poll(KEEP_MS):
            self._kept.clear()
            self.let_mappings_go()
        if not self.spin.look(lambda: self.poll.poll(0)):
            self.poll.poll()
        return self._read()

    def take_lease(self, lease: Lease) -> None:
        """Run these calls after those that are here."""
        if lease.position >= self._dropped_to:
            self._leases.append(lease)

    def take_output(self, output: Output) -> None:
        """Print to these files after what is here was run."""
        self._leases.append(output)

    def take_answer(self, kind: Kind, body: bytes) -> None:
        """A call may wait, or go on."""
        self._switched = kind
        self._leases = deque(one for one in self._leases if isinstance(one, Output))

    def _more_has_come(self) -> bool:
        return bool(self.poll.poll(0))


def main(
    settings: dict[str, Any], number: int, slot: int, connection: int, memory: mmap.mmap, concurrent: bool
) -> None:
    """Be one worker. Runs in a process just forked from the fork server."""
    context.worker_of = context.WorkerOf(
        settings["app_id"], settings["address"], bytes.fromhex(settings["key"]), settings["database"]
    )
    context.databases[settings["database"]] = None
    writer = Writer(BlobDirectory(settings["database"]), settings["blob_memory_bytes"], is_worker=True)
    freezer = Freezer(writer, settings["blob_threshold_bytes"])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    with socket.socket(fileno=connection) as supervisor:
        worker: BaseWorker
        if concurrent:
            from pynenc.worker.concurrent import ConcurrentWorker

            worker = ConcurrentWorker(number, supervisor, Slot(memory, slot), freezer)
        else:
            worker = Worker(number, supervisor, Slot(memory, slot), freezer)
        worker.held = [settings["workers_lock"]]
        os.register_at_fork(after_in_child=worker.after_fork_in_child)
        worker.run()
    if worker.is_retired:
        let_calls_leave()
