"""Start another process of pynenc with its settings, which hold a key and so never stand on a command line.

`posix_spawn` rather than the subprocess module, which takes 10 ms to import, twice on the way of every cold start.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from pynenc.exceptions import RunnerError
from pynenc.system.descriptors import is_open, lifted
from pynenc.system.output import flush_output

_PROGRAM = """
import gc, marshal, os, sys
gc.disable()
try:
    fds, new_session, path = marshal.load(sys.stdin.buffer)
except EOFError:  # Whoever has started it has ended meanwhile.
    os._exit(0)
new_session and os.setsid()
for fd in fds:
    os.set_inheritable(fd, False)
standard = os.path.dirname(os.__file__)
behind = [at + 1 for at, one in enumerate(sys.path) if one in (standard, os.path.join(standard, "lib-dynload"))]
sys.path[max(behind, default=0) : 0] = path[:1]  # This pynenc, whatever other one is installed.
sys.path += [one for one in path if one not in sys.path]
from pynenc.system.boot import run
run(sys.argv[1])
"""

_SWITCHES = {
    "debug": "-d",
    "optimize": "-O",
    "dont_write_bytecode": "-B",
    "no_user_site": "-s",
    "no_site": "-S",
    "ignore_environment": "-E",
    "bytes_warning": "-b",
}
_OF_ONE_RUN = ("importtime", "showrefcount", "frozen_modules", "tracemalloc", "perf", "perf_jit", "presite")
"""Options that are about one process, and not about how code runs."""


def interpreter_flags() -> list[str]:
    """The options that this interpreter was started with, for another one that is to run the same code in the same way.

    `multiprocessing` passes the same on; the function that tells them is one of the slow `subprocess`, and not public.
    """
    flags = [switch for name, switch in _SWITCHES.items() for _ in range(getattr(sys.flags, name))]
    flags += [f"-W{one}" for one in sys.warnoptions]
    options = {name: value for name, value in sys._xoptions.items() if name not in _OF_ONE_RUN}
    return flags + [
        arg for name, value in options.items() for arg in ("-X", name if value is True else f"{name}={value}")
    ]


_unreaped: set[int] = set()
"""The interpreters that were started here, as far as nobody has taken their status."""


class Started:
    """A child process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int | None:
        """Wait until it has ended; its status, as `os.waitpid` gives it, unless somebody else has taken that."""
        _unreaped.discard(self.pid)
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(self.pid, 0)[1]
        return None


class Begun(Started):
    """A new interpreter that has begun to run a module, and waits to be told its settings. It ends if it never is."""

    def __init__(self, pid: int, pipe: int) -> None:
        super().__init__(pid)
        self._pipe: int | None = pipe

    def tell(self, settings: dict[str, Any]) -> None:
        """Let it go on: `module.main(settings)`."""
        import json

        self._write(json.dumps(settings).encode())
        self.abandon()

    def abandon(self) -> None:
        """It is told nothing more, and ends by itself if it was told nothing."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)

    def _write(self, told: bytes) -> None:
        assert self._pipe is not None
        with contextlib.suppress(BrokenPipeError), open(self._pipe, "wb", closefd=False) as file:
            file.write(told)

    def __del__(self) -> None:
        self.abandon()


def begin_module(
    module: str, pass_fds: Sequence[int], environment: Mapping[str, str] | None = None, new_session: bool = False
) -> Begun:
    """Begin a module in a new interpreter, which imports it while its settings are found out.

    The interpreter does not look for modules in the working directory, where a file of the user's may have the
    name of one in the standard library.

    Args:
        module: What to run.
        pass_fds: Open files that it inherits under the same numbers.
        environment: Its environment variables; None for those of this process.
        new_session: Whether it stands apart from this process's terminal and its Ctrl-C.

    Raises:
        RunnerError: It cannot be started.
    """
    if not sys.executable:
        raise RunnerError("no supervisor can be started: sys.executable does not say which interpreter runs here")
    _reap()
    theirs, ours = map(lifted, os.pipe())
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, theirs, 0)]
    # Were one of these closed, the first file that it opens would get its number.
    actions += [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2) if not is_open(fd)]
    # A file that is duplicated onto itself is one that the new program keeps; what that starts does not get it.
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds]
    arguments = [sys.executable, "-P", *interpreter_flags(), "-c", _PROGRAM, module]
    whole = os.environ if environment is None else environment
    # Whatever this process does with its signals: the new one has to hear of the ends of its children, and of its own.
    mine: dict[str, Any] = {"setsigmask": (), "setsigdef": (signal.SIGCHLD, signal.SIGTERM)}
    try:
        try:
            # Before its first instruction, so that no Ctrl-C at this terminal hits it.
            pid = os.posix_spawn(sys.executable, arguments, whole, file_actions=actions, setsid=new_session, **mine)
            new_session = False
        except NotImplementedError:
            pid = os.posix_spawn(sys.executable, arguments, whole, file_actions=actions, **mine)
    except OSError as error:
        os.close(ours)
        raise RunnerError(f"the interpreter {sys.executable} cannot be started: {error}") from error
    finally:
        os.close(theirs)
    _unreaped.add(pid)
    begun = Begun(pid, ours)
    # Not JSON, which takes two milliseconds to import: the same Python reads it.
    begun._write(marshal.dumps((tuple(pass_fds), new_session, [str(path) for path in boot_path()])))
    return begun


def start_module(
    module: str, settings: dict[str, Any], pass_fds: Sequence[int], environment: Mapping[str, str]
) -> Started:
    """Start `module.main(settings)` in a new interpreter; the arguments are those of `begin_module`."""
    begun = begin_module(module, pass_fds, environment)
    begun.tell(settings)
    return begun


def _reap() -> None:
    """Take the status of those that have ended: a script that starts one after the other would have as many zombies."""
    for pid in list(_unreaped):
        try:
            has_ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:  # Somebody else has taken it, or this is a fork of whoever started it.
            has_ended = True
        if has_ended:
            _unreaped.discard(pid)


def fork_module(
    module: str, settings: dict[str, Any], pass_fds: Sequence[int], environment: Mapping[str, str]
) -> Started:
    """Start `module.main(settings)` in a fork of this process, which must have no thread beside this one, and nothing to hide.

    It is there at once, where a new interpreter takes as long to begin as all that follows. The arguments are those of
    `start_module`.
    """
    pid = os.fork()
    if pid == 0:
        _become(module, settings, pass_fds, environment)
    return Started(pid)


def _become(module: str, settings: dict[str, Any], pass_fds: Sequence[int], environment: Mapping[str, str]) -> NoReturn:
    def main() -> None:
        # Whoever waits for the end of a pipe of the parent's must not wait for this process.
        for fd in [int(name) for name in os.listdir("/dev/fd")]:
            if fd > 2 and fd not in pass_fds:
                with contextlib.suppress(OSError):  # The listing itself was one.
                    os.close(fd)
        os.environ.update(environment)
        import_module(module).main(settings)

    end_with(main)


def run(module: str) -> NoReturn:
    """All that a new interpreter does: `module.main(settings)`, once it is told these."""

    def main() -> None:
        entered = import_module(module)
        told = sys.stdin.buffer.read()
        if told:  # Else whoever has begun it has no need for it.
            import json

            entered.main(json.loads(told))

    end_with(main)


def end_with(main: Callable[[], object]) -> NoReturn:
    """The last that this process does. What it leaves in memory is not taken down piece by piece, which would take 10 ms.

    In a fork nothing may go back into the parent's code, whatever is raised.
    """
    error: BaseException | None = None
    try:
        main()
    except BaseException as raised:  # see above
        error = raised
    finally:
        leave(error)


def leave(error: BaseException | None) -> NoReturn:
    """End this process at once as a script would: with the code of `SystemExit`, 0 after a return, 1 after what nobody caught."""
    code = 1
    try:
        code = _code_of(error)
        flush_output()
    finally:
        os._exit(code)


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        import traceback

        traceback.print_exception(error)
        return 1
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def all_is_imported() -> None:
    """Look for garbage from now on, but not among what was imported: it stays, and forked processes share its memory."""
    gc.freeze()
    gc.enable()


def boot_path() -> list[str]:
    """Where a new interpreter finds pynenc and what it needs."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [package, *filter(None, texts_of_path())]


def texts_of_path() -> list[str]:
    """`sys.path`, but for what is no text in it, which imports pass over, too."""
    return [path for path in sys.path if isinstance(path, str)]
