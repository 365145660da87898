"""Waiting inside a call: the worker runs what it waits for itself, on top of the call that waits.

::

    call A runs ── waits for B ──PAUSE──▶ supervisor: what lies behind A goes to others
                   ◀──PAUSED, leases of B's batch──
                   B runs here, or somewhere else
                   ── RESUME ──▶            what was not begun of B's batch goes back
                   ◀──RESUMED──
    call A goes on

Leases that come before PAUSED or RESUMED were taken back by the supervisor and are dropped. Only what the call waits for is
run on top of it: anything else could itself wait for the call below, which could then never go on.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.protocol.messages import Kind, Pause, number_frame
from pynenc.protocol.slots import POSITION, STARTED

if TYPE_CHECKING:
    from pynenc.worker.main import Worker


class Nesting:
    """Waits on behalf of the calls of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._main_thread = threading.get_ident()
        self._threads = 0
        self._lock = threading.Lock()
        self._sleeps = False
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def wait(self, connection: Any, done: Callable[[], bool], awaited: Sequence[int], timeout: float | None) -> bool:
        """Wait until something is so that the outcomes of these batches bring about; whether it is so."""
        connection.read_nowait()
        if done():
            return True
        if threading.get_ident() != self._main_thread or context.worker_running is None or self._sleeps:
            return self._wait_beside(connection, done, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        worker, shipper = self._worker, self._worker.shipper
        numbers, times = worker.slot.numbers, worker.slot.times
        running, position, started = context.worker_running, numbers[POSITION], times[STARTED]
        shipper.ship()
        suspended, place = shipper.suspend(), worker.place()
        worker.switch(Pause(position, running.end(), started, tuple(awaited)).to_frame(), Kind.PAUSED)
        worker.paused += 1
        try:
            return self._run_until(connection, done, deadline)
        finally:
            worker.paused -= 1
            shipper.ship()  # Once the slot says the waiting call again, it no longer tells that these were begun.
            begun = numbers[POSITION]
            # Before it is told: whoever is told looks into the slot for the call that goes on, which may have to be ended.
            times[STARTED], numbers[POSITION] = started, position
            worker.switch(number_frame(Kind.RESUME, begun), Kind.RESUMED)
            context.worker_running = running
            worker.go_back(place)
            shipper.resume(suspended)

    def _wait_beside(self, connection: Any, done: Callable[[], bool], timeout: float | None) -> bool:
        """Wait in another thread of the call, or in a signal handler that interrupts one: a spare worker runs others."""
        self._count_threads(1)
        try:
            return bool(connection.wait_until(done, timeout))
        finally:
            self._count_threads(-1)

    def _count_threads(self, change: int) -> None:
        with self._lock:
            self._threads += change
            self._worker.send(number_frame(Kind.WAITS, self._threads))

    def _run_until(self, connection: Any, done: Callable[[], bool], deadline: float | None) -> bool:
        worker = self._worker
        poll = select.poll()
        for readable in (worker.connection, connection, self._woken):
            poll.register(readable, select.POLLIN)
        connection.on_read = self._wake
        try:
            while not done():
                if worker.run_next():
                    continue
                self._sleeps = True
                if done():  # A signal handler may have read it just before.
                    break
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    connection.read_nowait()
                    return done()
                ready = worker.spin.look(lambda: poll.poll(0)) or poll.poll(None if left_s is None else left_s * 1000)
                self._sleeps = False
                for descriptor, _ in ready:
                    if descriptor == worker.connection.fileno():
                        worker.receive_or_end()
                    elif descriptor == self._woken.fileno():
                        self._woken.recv(4096)
                    else:
                        connection.read_nowait()
                        if connection.lost is not None and not done():
                            raise connection.lost
        finally:
            self._sleeps = False
            connection.on_read = None
        return True

    def _wake(self) -> None:
        """Another thread, or a signal handler, has read what the main one may be waiting for."""
        if threading.get_ident() != self._main_thread or self._sleeps:
            try:
                self._waker.send(b".")
            except BlockingIOError:
                pass  # It is being woken already.
