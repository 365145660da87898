"""Schema versions: a new file is given the schema, an older one is brought up, a newer one is refused."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from pynenc.exceptions import StateBackendError
from pynenc.state_backend import queries
from pynenc.state_backend.faults import Fault

SCHEMA_VERSION = 4


def _add_transitions(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE transitions (id INTEGER NOT NULL, stop INTEGER NOT NULL, status TEXT NOT NULL,"
        " worker INTEGER NOT NULL, time REAL NOT NULL, PRIMARY KEY (id, time, status)) WITHOUT ROWID"
    )


def _add_shelf(connection: sqlite3.Connection) -> None:
    """What was not finished until now waits for somebody to resume it: why it was left nobody knows any more."""
    connection.execute("CREATE TABLE shelved (batch INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE settled (client INTEGER NOT NULL)")
    connection.execute("INSERT INTO settled SELECT COALESCE(MAX(id), 0) FROM clients")
    connection.execute(f"INSERT INTO shelved SELECT id FROM batches WHERE {queries.IS_UNFINISHED}")


def _add_blobs(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE blobs (kind INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 1), id INTEGER NOT NULL,"
        " name BLOB NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (kind, id, name)) WITHOUT ROWID"
    )


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _add_transitions, 2: _add_shelf, 3: _add_blobs}
"""For each older version, what brings a database one version up."""


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version of a database; 0 when it is empty."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def refuse_newer(connection: sqlite3.Connection, path: str) -> None:
    """Raise when the database was written by a later version of pynenc.

    Raises:
        StateBackendError: It was; says both versions.
    """
    found = version_of(connection)
    if found > SCHEMA_VERSION:
        raise StateBackendError(
            f"{path} has schema version {found}, and this pynenc knows {SCHEMA_VERSION}: "
            "a later pynenc wrote it. Use that one, or another state_dir (PYNENC__STATE_DIR).",
            Fault.NEWER,
        )


def bring_up(connection: sqlite3.Connection, path: str) -> None:
    """Give a database the current schema, all of it in one transaction.

    Raises:
        StateBackendError: The database is newer than this pynenc, or another program's.
    """
    refuse_newer(connection, path)
    found = version_of(connection)
    if found == SCHEMA_VERSION:
        return
    if found == 0:
        _refuse_foreign(connection, path)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # It has to be said before there are tables.
        with open(os.path.join(os.path.dirname(__file__), "schema.sql")) as file:
            schema = file.read()
        connection.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        return
    connection.execute("BEGIN IMMEDIATE")
    for version in range(found, SCHEMA_VERSION):
        MIGRATIONS[version](connection)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _refuse_foreign(connection: sqlite3.Connection, path: str) -> None:
    if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
        raise StateBackendError(
            f"{path} is the database of another program: set state_dir (PYNENC__STATE_DIR) to another directory",
            Fault.FOREIGN,
        )
