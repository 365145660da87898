"""What no executor can go below on this machine: `python -m benchmarks.floors`."""

from __future__ import annotations

import os
import pickle
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def median_us(action: Callable[[], object], count: int = 3_000) -> float:
    """Microseconds that an action takes, median."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def ping_pong(through_a_third: bool) -> float:
    """A byte to another process and back, with or without a third between them."""
    ours, theirs = socket.socketpair()
    children = []
    if through_a_third:
        inner, outer = socket.socketpair()
        children.append(_child(lambda: _forward(theirs, inner), close=[ours, outer]))
        children.append(_child(lambda: _echo(outer), close=[ours, theirs, inner]))
        inner.close()
        outer.close()
    else:
        children.append(_child(lambda: _echo(theirs), close=[ours]))
    theirs.close()
    try:
        return median_us(lambda: (ours.send(b"x"), ours.recv(1)))
    finally:
        ours.close()
        for child in children:
            os.waitpid(child, 0)


def _child(run: Callable[[], None], close: list[socket.socket]) -> int:
    pid = os.fork()
    if pid == 0:
        for connection in close:
            connection.close()
        run()
        os._exit(0)
    return pid


def _echo(connection: socket.socket) -> None:
    while received := connection.recv(1):
        connection.send(received)


def _forward(near: socket.socket, far: socket.socket) -> None:
    while received := near.recv(1):
        far.send(received)
        near.send(far.recv(1))
    far.shutdown(socket.SHUT_RDWR)


def commit(rows: int) -> float:
    """A SQLite commit of so many small rows, in WAL mode without waiting for the disk."""
    with tempfile.TemporaryDirectory() as directory:
        connection = sqlite3.connect(Path(directory, "floor.db"), isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE calls (id INTEGER PRIMARY KEY, payload BLOB)")
        values = [(b"x" * 40,)] * rows

        def once() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO calls (payload) VALUES (?)", values)
            connection.execute("COMMIT")

        took = median_us(once, 500)
        connection.close()
        return took


def main() -> None:
    """Measure and print."""
    call = ("module.task", (1, 2))
    print("| floor | µs |\n| --- | --- |")
    print(f"| socket ping-pong between two processes | {ping_pong(False):.0f} |")
    print(f"| the same through a third process | {ping_pong(True):.0f} |")
    print(f"| pickle and unpickle a small call | {median_us(lambda: pickle.loads(pickle.dumps(call, 5))):.1f} |")
    print(f"| SQLite commit of 1 row | {commit(1):.0f} |")
    print(f"| SQLite commit of 100 rows | {commit(100):.0f} |")


if __name__ == "__main__":
    main()
