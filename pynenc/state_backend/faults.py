"""What can be wrong with a database, in words: which file, why, and what to do about it."""

from __future__ import annotations

import sqlite3
from enum import StrEnum

from pynenc.exceptions import StateBackendError


class Fault(StrEnum):
    """Why a database does not do what it is asked. The value is the reason in words."""

    FULL = "its disk is full"
    READ_ONLY = "it cannot be written"
    LOCKED = "another program holds it locked"
    UNREADABLE = "it cannot be opened"
    DISK = "its disk reports an error"
    CORRUPT = "it is damaged"
    GONE = "it was deleted or moved away"
    NEWER = "a later pynenc wrote it"
    FOREIGN = "it is the database of another program"
    UNKNOWN = "SQLite reports an error"


LASTING = frozenset({Fault.CORRUPT, Fault.GONE, Fault.NEWER, Fault.FOREIGN})
"""What does not pass by itself. All else is tried again for a while."""

_FAULTS = {
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_READONLY: Fault.READ_ONLY,
    sqlite3.SQLITE_PERM: Fault.READ_ONLY,
    sqlite3.SQLITE_BUSY: Fault.LOCKED,
    sqlite3.SQLITE_LOCKED: Fault.LOCKED,
    sqlite3.SQLITE_PROTOCOL: Fault.LOCKED,
    sqlite3.SQLITE_CANTOPEN: Fault.UNREADABLE,
    sqlite3.SQLITE_IOERR: Fault.DISK,
    sqlite3.SQLITE_CORRUPT: Fault.CORRUPT,
    sqlite3.SQLITE_NOTADB: Fault.CORRUPT,
}

_REMEDIES = {
    Fault.FULL: "make room on that disk, or set state_dir (PYNENC__STATE_DIR) to a directory on another one",
    Fault.READ_ONLY: "make it and its directory writable, or set state_dir (PYNENC__STATE_DIR) to another directory",
    Fault.LOCKED: "end the transaction of that program (a database browser, a backup)",
    Fault.UNREADABLE: "see that its directory is there, and that you may read and write it",
    Fault.DISK: "look into the system's log; limits on the size of files (ulimit -f, quotas) do the same",
    Fault.CORRUPT: "a supervisor that starts sets it aside, under another name, and begins a new one",
}


def fault_of(error: sqlite3.Error) -> Fault:
    """What is wrong, by the code that SQLite gives."""
    code = getattr(error, "sqlite_errorcode", None)  # Errors of the module itself have none.
    return Fault.UNKNOWN if code is None else _FAULTS.get(code & 0xFF, Fault.UNKNOWN)


def explained(path: str, what: str, error: sqlite3.Error) -> StateBackendError:
    """The error of this database.

    Args:
        path: The database.
        what: What it does not do: "cannot be read".
        error: What SQLite says.
    """
    fault = fault_of(error)
    remedy = f": {_REMEDIES[fault]}" if fault in _REMEDIES else ""
    return StateBackendError(f"{path} {what}: {fault} ({error}){remedy}", fault)
