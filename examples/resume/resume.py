"""A resumable import: what an earlier run has done is not done again, however that run ended.

Run it with `pynenc run examples/resume/resume.py --crash`, which is killed half-way like by a lost connection or a closed laptop,
and then without `--crash`: only the missing lines are loaded. The lines go into an SQLite file beside the state directory.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
from contextlib import closing

from pynenc import Pynenc

app = Pynenc("resume")

LINES = 2_000
TARGET = "imported.sqlite"


@app.task
def load(target: str, line: int) -> int:
    """Load one line; how often it was loaded, this time included."""
    with closing(sqlite3.connect(target, timeout=60)) as database, database:
        database.execute("INSERT INTO line VALUES (?)", (line,))
        return int(database.execute("SELECT count(*) FROM line WHERE number = ?", (line,)).fetchone()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="import-2026-11", help="names the import: another name is another import")
    parser.add_argument("--crash", action="store_true", help="be killed when half of the lines are there")
    options = parser.parse_args()

    target = os.path.abspath(TARGET)
    with closing(sqlite3.connect(target)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE IF NOT EXISTS line (number INTEGER)")
        database.execute("CREATE INDEX IF NOT EXISTS by_number ON line (number)")
        before = database.execute("SELECT count(*) FROM line").fetchone()[0]
    lines = load.parallelize([(target, line) for line in range(LINES)], name=options.name)
    for done, _ in enumerate(lines.as_completed(), 1):
        if options.crash and done == LINES // 2:
            print(f"{done:,} lines are there: killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    print(
        f"{len(lines):,} lines, {before:,} of them from earlier runs; loaded twice: {sum(n > 1 for n in lines.results)}"
    )
