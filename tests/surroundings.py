"""Tasks that tell where they are, for the tests of that."""

from __future__ import annotations

import os
from pathlib import Path

from tests.tasks import app


@app.task
def where() -> str:
    return os.getcwd()


@app.task(async_concurrency=4)
async def async_where() -> str:
    return os.getcwd()


@app.task(threads_per_worker=4)
def where_in_threads() -> str:
    return os.getcwd()


@app.task
def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return os.getcwd()


@app.task
def go(directory: str) -> str:
    """Change to a directory; where it was before."""
    before = os.getcwd()
    os.chdir(directory)
    return before


@app.task
def call_from(directory: str) -> tuple[str, str, str]:
    """Change to a directory and make a call there: where it began, where that call was, and where this one is then."""
    before = os.getcwd()
    os.chdir(directory)
    return before, where().result, os.getcwd()


@app.task
def call_and_move(directory: str, other: str) -> tuple[str, str]:
    """Make a call in a directory, which goes to another one: where this is then, and a call that it makes from there."""
    os.chdir(directory)
    go(other).wait()
    here = os.getcwd()
    os.chdir(other)
    return here, where().result
