"""Open the database for writing; one that is damaged is set aside, whole and unchanged, and a new one begun.

Runs in the supervisor. A database is looked at through a read-only connection first, because one that may write moves
its log into the file when it is closed, and what is set aside is to stay as it was found.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time

from pynenc.exceptions import StateBackendError
from pynenc.named_tuples import NamedTuple
from pynenc.state_backend import migrations
from pynenc.state_backend.faults import Fault, explained

OPEN_MS = 10_000
"""How long opening waits for another program's lock."""

COMMIT_MS = 50
"""How long one commit does; the loop stands still meanwhile. Whoever commits tries again."""

WHOLE_CHECK_BYTES = 32 << 20
"""A database that was not closed is read through if it is no larger than this. It takes 60 ms (two cores, SQLite 3.40)."""

_LOG_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""With what a write-ahead log begins (https://www.sqlite.org/fileformat2.html#walformat)."""

SUFFIXES = ("-shm", "-wal", "-journal", "")
"""The files of a database. The file itself is last, so a log never lies beside a database that it does not belong to."""


class Opened(NamedTuple):
    """A database that can be written.

    Attributes:
        connection: The one that writes.
        witness: One that reads. As long as it is open, closing the other neither moves the log nor removes a file by
            a name that may be another file's by then.
        set_aside: Under which name a damaged one was set aside; empty when none was.
    """

    connection: sqlite3.Connection
    witness: sqlite3.Connection
    set_aside: str


def open_for_writing(path: str, durability: str) -> Opened:
    """Open a database, or begin it.

    Raises:
        StateBackendError: It cannot be used; nothing was changed.
    """
    aside = ""
    try:
        _look_at(path)
    except StateBackendError as error:
        if error.fault != Fault.CORRUPT:
            raise
        aside = set_aside(path)
    aside = _set_damaged_log_aside(path) or aside
    try:
        if not any(os.path.lexists(path + suffix) for suffix in SUFFIXES):
            _begin(path)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise explained(path, "cannot be used as pynenc's database", error) from error
    try:
        os.chmod(path, 0o600)
        connection.execute(f"PRAGMA busy_timeout = {OPEN_MS}")
        migrations.bring_up(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {durability}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA busy_timeout = {COMMIT_MS}")
        witness = read_only(path)
        migrations.version_of(witness)  # From its first read on it holds the file.
    except sqlite3.Error as error:
        connection.close()
        raise explained(path, "cannot be used as pynenc's database", error) from error
    except BaseException:
        connection.close()
        raise
    return Opened(connection, witness, aside)


def _begin(path: str) -> None:
    """Put an empty database there, whole or not at all.

    SQLite waits for the disk a dozen times to begin one under its own name. Under another one nobody sees what is half done, so
    this waits twice. Where the directory takes no other file, that is what is told of when the database is opened.
    """
    new = f"{path}.new"
    try:
        for suffix in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new + suffix)  # Whoever began it died at that.
        connection = sqlite3.connect(new, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")
            migrations.bring_up(connection, new)
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        _wait_for_disk(new)
        os.rename(new, path)
        _wait_for_disk(os.path.dirname(path))
    except (OSError, sqlite3.Error):
        with contextlib.suppress(OSError):
            os.unlink(new)


def _wait_for_disk(path: str) -> None:
    """Return when a file, or what stands in a directory, would survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def existing(path: str, mode: str = "mode=rw") -> sqlite3.Connection:
    """A connection that makes no database where there is none."""
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")  # urllib.parse takes long to import.
    return sqlite3.connect(f"file:{quoted}?{mode}", uri=True, isolation_level=None, check_same_thread=False)


def read_only(path: str, immutable: bool = False) -> sqlite3.Connection:
    """A connection that only reads.

    Args:
        path: The database.
        immutable: Whether nobody can write it, so that neither locks nor a log are looked for.
    """
    return existing(path, "mode=ro&immutable=1" if immutable else "mode=ro")


def set_aside(path: str) -> str:
    """Give a database another name, with its log; the new name. Nothing is overwritten."""
    aside = _unused(f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            if suffix == "-shm" or (suffix and not size_of(path + suffix)):
                os.unlink(path + suffix)  # An index, which SQLite makes anew from the log; a log of nothing.
            else:
                os.rename(path + suffix, aside + suffix)
    return aside


def _look_at(path: str) -> None:
    """See whether a database is whole, as far as that can be seen cheaply.

    SQLite itself compares the length of the file with what its head says, and reads the schema. What lies deeper is found when it
    is read. Only after a death is a small one read through.

    Raises:
        StateBackendError: It is damaged, or it cannot be read.
    """
    size = size_of(path)
    if not size or os.path.exists(f"{path}-journal"):
        return  # Whoever began it died at that, or at a migration; SQLite takes back what was half done when it may write.
    connection = read_only(path)
    try:
        connection.execute(f"PRAGMA busy_timeout = {OPEN_MS}")
        migrations.refuse_newer(connection, path)
        # Of tables without row ids SQLite 3.40 says that they have NULLs where they have none.
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%'"
        ).fetchall()
        if size_of(f"{path}-wal") and size <= WHOLE_CHECK_BYTES:
            for (table,) in tables:
                found = connection.execute(f"PRAGMA quick_check('{table}')").fetchone()[0]
                if found != "ok":
                    raise StateBackendError(f"{path} is damaged: {found}", Fault.CORRUPT)
    except sqlite3.Error as error:
        raise explained(path, "cannot be used as pynenc's database", error) from error
    finally:
        connection.close()


def _set_damaged_log_aside(path: str) -> str:
    """SQLite takes a log that does not begin like one for an empty log, and writes over it."""
    log = f"{path}-wal"
    try:
        with open(log, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        return ""
    if not head.strip(b"\0") or head in _LOG_MAGIC:
        return ""
    aside = _unused(f"{log}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
    os.rename(log, aside)
    return aside


def _unused(name: str) -> str:
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(one for one in names if not any(os.path.lexists(one + suffix) for suffix in SUFFIXES))


def size_of(path: str) -> int:
    """How large a file is; 0 when there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
