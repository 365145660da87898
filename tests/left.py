"""Tasks for tests of what is left behind."""

from __future__ import annotations

from pathlib import Path

from tests.tasks import app, begin_and_wait_for, note


@app.task
def parent(begun: str, gate: str, log: str, x: int) -> int:
    """Make a call that waits for a file, and wait for it."""
    begin_and_wait_for(begun, gate).result  # noqa: B018
    return note.func(log, x)


@app.task
def parent_of_notes(log: str, begun: str, gate: str, count: int) -> int:
    """Make calls that leave a mark, and wait for a file before waiting for them."""
    made = note.parallelize([(log, x) for x in range(count)])
    app._cluster.sync()
    begin_and_wait_for.func(begun, gate)
    return len(list(made.results))


@app.task(rerun_on_worker_loss=False)
def note_once(log: str, x: int, gate: str) -> int:
    """Leave a mark, and wait for a file; it must not run twice."""
    note.func(log, x)
    return len(begin_and_wait_for.func(f"{log}.begun", gate)) and x


@app.task
def fail_for(x: int, gate: str) -> int:
    """Wait for a file, and fail for odd numbers."""
    begin_and_wait_for.func(f"{gate}.begun", gate)
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def lines_of(log: Path) -> list[int]:
    """The marks in a log, in order of size."""
    return sorted(map(int, log.read_text().split())) if log.exists() else []
