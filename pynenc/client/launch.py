"""Find the supervisor of an app and state directory, or start it.

Whoever looks holds the start lock, so that two scripts that begin at once share one supervisor. The run file in the state
directory tells where the supervisor listens and the key to it; only this user can read either.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import stat
import time
from typing import Any

from pynenc.client.beginning import BegunSupervisor
from pynenc.client.paths import Paths
from pynenc.exceptions import RunnerError, SupervisorLostError
from pynenc.protocol import run_file
from pynenc.protocol.run_file import Address
from pynenc.system.descriptors import lifted, open_private
from pynenc.system.lock import FileLock

HIDDEN_S = 8.0
"""A supervisor looks every two seconds whether it can be found."""

MAX_ADDRESS_BYTES = 100
"""Systems allow 104 to 108 bytes for the path of a socket."""


def prepare_state_dir(state_dir: str) -> None:
    """Make the state directory, for this user alone.

    Raises:
        RunnerError: It cannot be made or written, or it belongs to somebody else.
    """
    try:
        if not os.path.isdir(state_dir):
            os.makedirs(state_dir, mode=0o700, exist_ok=True)
            os.chmod(state_dir, 0o700)  # Whatever the umask has taken.
        check_state_dir(state_dir)
        ignore = os.path.join(state_dir, ".gitignore")
        if not os.path.exists(ignore):
            with open(ignore, "w") as file:
                file.write("*\n")
    except OSError as error:
        raise _unusable(state_dir, error) from error


def _unusable(state_dir: str, error: OSError) -> RunnerError:
    """What the system says of the state directory, and what to do about it."""
    advice = "set state_dir (PYNENC__STATE_DIR) to a directory that can be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room on its disk, or set state_dir (PYNENC__STATE_DIR) to a directory on another one"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        advice = "this process has no open files left: close some, or raise the limit (ulimit -n)"
    return RunnerError(f"the state directory {state_dir} cannot be used: {error}; {advice}")


def check_state_dir(state_dir: str) -> None:
    """See that nobody else can have put pickles there. One that does not exist yet is as good.

    Raises:
        RunnerError: It belongs to somebody else, or anybody can write to it.
    """
    try:
        found = os.stat(state_dir)
    except FileNotFoundError:
        return
    if found.st_uid != os.geteuid():
        raise RunnerError(
            f"the state directory {state_dir} belongs to another user, whose pickles would be run here: "
            "set state_dir to one of your own"
        )
    if found.st_mode & stat.S_IWOTH:
        raise RunnerError(
            f"the state directory {state_dir} is one that others can write to, and their pickles would be run here: "
            "chmod o-w it, or set state_dir to one of your own"
        )


def find(paths: Paths) -> tuple[socket.socket, Address] | None:
    """A connection to the running supervisor; None when none runs. The caller holds the start lock."""
    address = run_file.read(paths.run_file)
    connection = connect(address) if address is not None else None
    return (connection, address) if address is not None and connection is not None else None


def find_running(paths: Paths) -> tuple[socket.socket, Address] | None:
    """The same, safe against a supervisor that is just about to end."""
    if not os.path.exists(paths.run_file):
        return None
    try:
        with FileLock(paths.start_lock):
            return find(paths)
    except OSError as error:
        if error.errno == errno.EROFS:
            return find(paths)  # Its supervisor sees it under another mount, where it can be written.
        raise _unusable(os.path.dirname(paths.start_lock), error) from error


def connect(address: Address) -> socket.socket | None:
    """A connection to this address; None when nobody listens there, or it is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection = socket.socket(fileno=lifted(connection.detach()))
        connection.connect(address.path)
    except OSError as error:
        connection.close()
        is_none = len(os.fsencode(address.path)) > MAX_ADDRESS_BYTES
        if is_none or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ENOTSOCK):
            return None
        raise
    return connection


def find_or_start(
    paths: Paths, settings: dict[str, Any], begun: BegunSupervisor | None = None
) -> tuple[socket.socket, Address]:
    """A connection to the supervisor; it is started when none runs, with the interpreter that was begun for it if one was.

    Raises:
        RunnerError: It did not start; says why.
    """
    try:
        with FileLock(paths.start_lock):
            found = find(paths)
            if found is not None:
                return found
            _remove_leftovers(paths)
            address, _ = _start_at_new_address(paths, settings, paths.log, begun)
            connection = connect(address)
    except _HiddenError:
        found = _find_hidden(paths)
        if found is None:
            raise
        return found
    except OSError as error:
        raise _unusable(os.path.dirname(paths.start_lock), error) from error
    if connection is None:
        raise RunnerError(f"the supervisor started and ended at once; its log tells why: {paths.log}")
    return connection, address


class _HiddenError(RunnerError):
    """There is a supervisor, and what leads to it was removed."""


def _find_hidden(paths: Paths) -> tuple[socket.socket, Address] | None:
    """A connection to a supervisor whose socket or run file was removed, as soon as it has put them back; None when it does not."""
    deadline = time.monotonic() + HIDDEN_S
    while (found := find_running(paths)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def start_staying(paths: Paths, settings: dict[str, Any], log: str | None) -> int:
    """Start a supervisor that stays when its clients have left.

    Args:
        paths: The app's files.
        settings: What the supervisor needs to know.
        log: The file that the supervisor prints to; None for this process's own output.

    Returns:
        Its pid.

    Raises:
        RunnerError: One runs already, or it does not start; says why.
    """
    try:
        with FileLock(paths.start_lock):
            found = find(paths)
            if found is not None:
                found[0].close()
                raise RunnerError(
                    "a supervisor of this app and state directory runs already: pynenc runner stop ends it"
                )
            _remove_leftovers(paths)
            return _start_at_new_address(paths, {**settings, "persistent": True}, log)[1]
    except OSError as error:
        raise _unusable(os.path.dirname(paths.start_lock), error) from error


def _start_at_new_address(
    paths: Paths, settings: dict[str, Any], log: str | None, begun: BegunSupervisor | None = None
) -> tuple[Address, int]:
    address = _new_address(paths)
    whole = {
        **settings,
        "address": address.path,
        "key": address.key.hex(),
        "database": paths.database,
        "start_lock": paths.start_lock,
        "workers_lock": paths.workers_lock,
        "run_file": paths.run_file,
        "log": log,
        "starter": os.getpid(),
    }
    try:
        # It does not print to the terminal of whoever started it: that may go away, or wait for its end.
        if log is not None:
            os.close(open_private(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        supervisor = begun or BegunSupervisor()
        try:
            _start(supervisor, whole, paths.log)
        finally:
            supervisor.abandon()
    except BaseException:
        _remove_leftovers(paths)
        raise
    return address, supervisor.process.pid


def _start(supervisor: BegunSupervisor, settings: dict[str, Any], log: str) -> None:
    """Have it serve, and wait until it does."""
    timeout_s: float = settings["start_timeout_s"]
    supervisor.tell(settings)
    process = supervisor.process
    try:
        import pynenc.state_backend  # noqa: F401  # It is needed soon, and brings SQLite; the supervisor starts meanwhile.

        poll = select.poll()  # select(2) knows no descriptors above 1023.
        poll.register(supervisor.ready, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise RunnerError(f"the supervisor did not start within {timeout_s:g} s (start_timeout_s)")
        told = supervisor.ready.read()
    except BaseException:  # Also Ctrl-C: nobody would ever come to it.
        process.kill()
        raise
    if not told:
        status = process.wait()
        if status is not None and os.WIFSIGNALED(status):
            raise SupervisorLostError(f"the supervisor was killed by signal {os.WTERMSIG(status)} while it started")
        raise RunnerError(f"the supervisor ended while it started; its log tells why: {log}")
    answer = json.loads(told)
    if "error" in answer:
        kind = _HiddenError if answer.get("is_hidden") else RunnerError
        raise kind(f"the supervisor could not start: {answer['error']}")


def _new_address(paths: Paths) -> Address:
    """Make a directory for the socket, and write the run file."""
    tried = []
    temporary = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")
    for base in dict.fromkeys([temporary, "/tmp", os.path.dirname(paths.run_file)]):
        directory = os.path.join(base, f"pynenc-{os.urandom(6).hex()}")
        path = os.path.join(directory, "socket")
        if len(os.fsencode(path)) > MAX_ADDRESS_BYTES:
            tried.append(f"{base} (its path is too long for a socket)")
            continue
        address = Address(path, os.urandom(32))
        # Written down first: whenever this process is killed, the next start finds what there is to be removed.
        run_file.write(paths.run_file, address)
        try:
            os.mkdir(directory, 0o700)
            os.chmod(directory, 0o700)
        except OSError as error:
            tried.append(f"{base} ({error.strerror})")
            continue
        return address
    _remove_leftovers(paths)
    raise RunnerError(
        f"no directory takes the supervisor's socket: tried {', '.join(tried)}; set TMPDIR to one that does"
    )


def _remove_run_directory(address: str) -> None:
    """Remove a socket and its directory, as far as they are there and ours."""
    directory = os.path.dirname(address)
    if os.path.basename(directory).startswith("pynenc-"):
        with contextlib.suppress(OSError):
            os.unlink(address)
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _remove_leftovers(paths: Paths) -> None:
    """What a killed supervisor could not take away itself."""
    with contextlib.suppress(OSError, ValueError):
        address = run_file.read(paths.run_file)
        if address is not None:
            _remove_run_directory(address.path)
        os.unlink(paths.run_file)
