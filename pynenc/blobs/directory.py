"""The files of blobs: shared memory, and files in the state directory for what finds no room there or must outlive it.

::

    /dev/shm/pynenc-<user>-<state directory>-<app>/      <state directory>/<app>.blobs/
        <name>             a blob                            <name>          a blob
        gone-<name>        freed, but somebody maps it
        free-<size>-<n>    a warm segment for the next
        <token>.alive      locked as long as its writer lives
        <token>.worker     the same, of a writer that ends with its supervisor

The next supervisor of the same app and state directory finds the same places. A blob moves from the one to the other under
the same name, so nothing that refers to it changes. All names are made here, and only names of these patterns are touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
from collections.abc import Container, Iterable, Iterator

from pynenc.named_tuples import NamedTuple

SHARED_MEMORY = "/dev/shm"

NAME_BYTES = 16
TOKEN_BYTES = 8
"""A name begins with the token of its writer."""

_MARKS = {"alive": "client", "worker": "worker", "new": "client"}
_HEX = frozenset("0123456789abcdef")

_F_SETLEASE = getattr(fcntl, "F_SETLEASE", None)
COPY_BYTES = 1 << 24

_LOOK = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
"""To open a file on which somebody has a lease would wait for that one, who may be stopped."""

HUGE_BYTES = 1 << 21
MIN_HUGE_BYTES = 2 * HUGE_BYTES
"""Segments of this size and more are mapped so that they can lie in huge pages; `mapping` does that."""

ATTEMPTS = 100
"""How often a directory is made that others take away when they find it empty."""

MAX_EXCESS = 2
"""A warm segment serves if it is at most so many times as large as the blob."""


class Segment(NamedTuple):
    """A warm segment that waits for its next blob."""

    size: int
    path: str


class BlobDirectory:
    """Where the blobs of one app and state directory lie.

    Args:
        database: The app's database; its path names the app and the state directory.
    """

    def __init__(self, database: str) -> None:
        base = database.removesuffix(".db")
        self.files = f"{base}.blobs"
        self._state_dir, self._app = os.path.split(base)
        self._memory: str | None = None

    @property
    def memory(self) -> str:
        """The directory in shared memory."""
        if self._memory is None:
            # Not its path: containers that share their /dev/shm may all have the same one.
            found = os.stat(self._state_dir)
            name = f"pynenc-{os.geteuid()}-{found.st_dev:x}-{found.st_ino:x}-{self._app}"
            self._memory = os.path.join(SHARED_MEMORY, name[:200])
        return self._memory

    def make_memory(self) -> bool:
        """See to it that the directory in shared memory is there and ours; False when it cannot be."""
        return os.path.isdir(SHARED_MEMORY) and _make_private(self.memory)

    def make_files(self) -> None:
        """See to it that the directory of the files is there.

        Raises:
            OSError: It cannot be made.
        """
        os.makedirs(self.files, mode=0o700, exist_ok=True)

    def open_new_file(self, path: str) -> int:
        """A file in the directory of the files, to write, which is made if need be.

        Raises:
            OSError: It cannot be made.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self.make_files()
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:  # Somebody has just found the directory empty and taken it away.
            self.make_files()
            return os.open(path, flags, 0o600)

    def path_in_memory(self, name: bytes) -> str:
        """Where a blob lies in shared memory."""
        return os.path.join(self.memory, name.hex())

    def path_of_freed(self, name: bytes) -> str:
        """Where the memory of a freed blob lies until nobody maps it."""
        return os.path.join(self.memory, f"gone-{name.hex()}")

    def path_in_files(self, name: bytes) -> str:
        """Where a blob lies as a file."""
        return os.path.join(self.files, name.hex())

    def is_in_memory(self, name: bytes) -> bool:
        """Whether a blob lies in shared memory."""
        return os.path.exists(self.path_in_memory(name))

    def open(self, name: bytes) -> int | None:
        """An open file of a blob, to read; None when it is nowhere."""
        try:
            places = (self.path_in_memory(name), self.path_in_files(name))
        except OSError:
            return None  # The state directory was taken away.
        # In this order, and twice: one that moves is in memory until it is among the files.
        for path in 2 * places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                if os.fstat(fd).st_uid == os.geteuid():
                    return fd
                os.close(fd)
        return None

    def blobs(self) -> Iterator[bytes]:
        """The names of all blobs that are there."""
        found = {entry for place in (self.memory, self.files) for entry in _entries(place) if _kind_of(entry) == "blob"}
        yield from map(bytes.fromhex, found)

    # What frees them.

    def free(self, name: bytes) -> bool:
        """Take a blob away; whether it had memory, which `recycle` takes up once nobody maps it."""
        had_memory = self.leave_memory(name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.path_in_files(name))
        return had_memory

    def recycle(self, name: bytes) -> bool:
        """Make a warm segment of a freed blob; False when somebody maps it still.

        Nobody opens a freed blob any more, since its name is gone. So what nobody has open now nobody will, and it can be
        written over. The kernel grants a write lease only then.
        """
        gone = self.path_of_freed(name)
        try:
            fd = self.open_freed(name)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # Somebody else is just looking, or no descriptors are left: later.
        try:
            is_unused = _is_unused(fd)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if is_unused is None:
            _unlink(gone)  # Its memory goes with the last mapping.
            return True
        if not is_unused:
            return False
        with contextlib.suppress(FileNotFoundError):  # Somebody else did it just now.
            os.rename(gone, os.path.join(self.memory, f"free-{size}-{name.hex()}"))
        return True

    def open_freed(self, name: bytes) -> int:
        """An open file of a freed blob, which is not recycled as long as it is open.

        Raises:
            OSError: It is recycled already, or just now, or no descriptors are left.
        """
        return os.open(self.path_of_freed(name), _LOOK)

    def recycle_all(self) -> None:
        """Make warm segments of all freed blobs that nobody maps any more."""
        for entry in _entries(self.memory):
            if _kind_of(entry) == "gone":
                self.recycle(bytes.fromhex(entry.partition("-")[2]))

    def make_segment(self, size: int) -> None:
        """Make a warm segment, if there is room."""
        name = os.urandom(NAME_BYTES).hex()
        path = os.path.join(self.memory, f"gone-{name}")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
            os.rename(path, os.path.join(self.memory, f"free-{size}-{name}"))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def segments(self) -> list[Segment]:
        """The warm segments, smallest first."""
        found = []
        for entry in _entries(self.memory):
            if _kind_of(entry) == "free":
                found.append(Segment(int(entry.split("-")[1]), os.path.join(self.memory, entry)))
        return sorted(found)

    def remove(self, names: Iterable[bytes]) -> None:
        """Take blobs away, and warm segments if no writer lives that could use them: no supervisor answers.

        It may be about to end all the same, and move to files what is to outlive it: what moves is left to it.
        """
        for name in names:
            _unlink(self.path_in_memory(name))
            _unlink(self.path_in_files(name))
        if not self.living_writers():
            self._remove_segments()
            self.remove_empty()

    def remove_all(self, living: Container[bytes] = ()) -> None:
        """Take the directories away, and all that is in shared memory, but for the marks and blobs of these writers."""
        for entry in _entries(self.memory):
            kind = _kind_of(entry)
            is_used = kind in ("blob", "client") and _token_of(entry) in living
            if kind and not is_used:
                _unlink(os.path.join(self.memory, entry))
        self.remove_empty()

    def remove_empty(self) -> None:
        """Take the directories away if there is nothing in them."""
        for place in (self.memory, self.files):
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def remove_leftovers(self) -> None:
        """Take away what only a supervisor that is dead was still to free."""
        self._remove_segments()
        for entry in _entries(self.files):
            if _kind_of(entry) == "moving":
                _unlink(os.path.join(self.files, entry))

    def _remove_segments(self) -> None:
        for entry in _entries(self.memory):
            if _kind_of(entry) in ("gone", "free"):
                _unlink(os.path.join(self.memory, entry))

    def sizes(self) -> tuple[int, int]:
        """The bytes of all blobs in shared memory, warm segments included, and in files."""
        sizes = []
        for place in (self.memory, self.files):
            total = 0
            for entry in _entries(place):
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(place, entry)).st_size
            sizes.append(total)
        return sizes[0], sizes[1]

    def leave_memory(self, name: bytes) -> bool:
        """Free the memory of a blob that lies in a file, too; whether it had any."""
        try:
            os.rename(self.path_in_memory(name), self.path_of_freed(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def copy_to_files(self, name: bytes) -> bool:
        """Copy a blob from shared memory to a file; False when it is not in shared memory.

        Raises:
            OSError: There is no room.
        """
        try:
            source = os.open(self.path_in_memory(name), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        path = self.path_in_files(name)
        fresh = f"{path}.new"
        try:
            target = self.open_new_file(fresh)
            try:
                _copy(source, target)
            finally:
                os.close(target)
            os.rename(fresh, path)
        except OSError:
            _unlink(fresh)
            raise
        finally:
            os.close(source)
        return True

    # Who lives.

    def announce(self, token: bytes, is_worker: bool) -> int:
        """Let a writer live: the open file, which is locked until it is closed or its process ends.

        Args:
            token: The writer's, with which the names of its blobs begin.
            is_worker: Whether it ends with its supervisor.
        """
        place = self.memory if self.make_memory() else self.files
        if place == self.files:
            self.make_files()
        fresh = os.path.join(place, f"{token.hex()}.new")
        mark = os.path.join(place, _mark_of(token, is_worker))
        for _ in range(ATTEMPTS - 1):
            # A supervisor that began just now may take it for a leftover, or one that ends take the directory away.
            with contextlib.suppress(FileNotFoundError):
                return _locked(fresh, mark)
            _make_private(place)
        return _locked(fresh, mark)

    def forget_writer(self, token: bytes, is_worker: bool) -> None:
        """A writer has ended on purpose."""
        for place in (self.memory, self.files):
            _unlink(os.path.join(place, _mark_of(token, is_worker)))

    def living_writers(self, workers: bool = True) -> set[bytes]:
        """The tokens of the writers that live; the marks of those that are dead are taken away.

        Args:
            workers: Also of those that end with their supervisor.
        """
        kinds = ("client", "worker") if workers else ("client",)
        return {
            _token_of(entry)
            for place in (self.memory, self.files)
            for entry in _entries(place)
            if _kind_of(entry) in kinds and _is_held(os.path.join(place, entry))
        }


def _kind_of(entry: str) -> str:
    """What a name in one of the directories is; empty when it is none of ours.

    >>> _kind_of("free-4096-" + 32 * "0"), _kind_of(16 * "a" + ".alive"), _kind_of("../x")
    ('free', 'client', '')
    """
    stem, _, ending = entry.partition(".")
    if ending:
        if ending == "new" and _is_hex(stem, 32):
            return "moving"
        return _MARKS.get(ending, "") if _is_hex(stem, 2 * TOKEN_BYTES) else ""
    what, *rest = stem.split("-")
    if not rest:
        return "blob" if _is_hex(stem, 32) else ""
    if what == "gone" and len(rest) == 1 and _is_hex(rest[0], 32):
        return "gone"
    if what == "free" and len(rest) == 2 and rest[0].isdecimal() and _is_hex(rest[1], 32):
        return "free"
    return ""


def _token_of(entry: str) -> bytes:
    return bytes.fromhex(entry[: 2 * TOKEN_BYTES])


def _mark_of(token: bytes, is_worker: bool) -> str:
    return f"{token.hex()}.{'worker' if is_worker else 'alive'}"


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and _HEX.issuperset(text)


def _make_private(path: str) -> bool:
    """See to it that a directory is there that only this user can enter."""
    for _ in range(ATTEMPTS):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError:
            return False
        with contextlib.suppress(FileNotFoundError):  # A supervisor that ends has just found it empty.
            found = os.lstat(path)
            return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return False


def _is_unused(fd: int) -> bool | None:
    """Whether nobody else has this file open or mapped; None where the system cannot tell."""
    if _F_SETLEASE is None:
        return None
    try:
        # Whoever opens the file in between is told of by a signal, and the usual one, SIGIO, would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _locked(fresh: str, name: str) -> int:
    """A new file, open and locked. It gets its name only then, so nobody takes it for one whose writer is dead."""
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.rename(fresh, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_held(path: str) -> bool:
    """Whether somebody holds this file locked; it is removed if not."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # No descriptors are left, so nobody knows.
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _unlink(path)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _copy(source: int, target: int) -> None:
    while True:
        piece = os.read(source, COPY_BYTES)
        if not piece:
            return
        view = memoryview(piece)
        while view:
            view = view[os.write(target, view) :]


def _entries(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
