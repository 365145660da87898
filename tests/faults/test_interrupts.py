"""Ctrl-C and SIGTERM: within a second all is stopped, the terminal has one line, and what had not run is kept.

| what | when | what the user sees |
| --- | --- | --- |
| Ctrl-C | while the script waits in any way, or between its calls | one line; all processes are gone; the calls are kept |
| Ctrl-C | while the supervisor starts | one line; it does not come up |
| Ctrl-C twice | while the supervisor does not answer | the script is gone at once |
| Ctrl-C | in one of two scripts | only that one's calls stop |
| Ctrl-C | while the database takes nothing | the same; what was not committed is lost if the supervisor ends with it |
| SIGTERM | at any time | the same, and the exit code of SIGTERM; a handler of the script's own comes first |
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pynenc.client import launch
from pynenc.client.paths import paths_of
from pynenc.exceptions import SupervisorLostError
from pynenc.system.lock import FileLock
from tests import tasks
from tests.conftest import PROJECT, all_gone, own_processes, wait_until
from tests.left import lines_of
from tests.terminal import CTRL_C, Terminal

STOPPED_S = 5.0
"""A second on an idle machine; this one may have much else to do."""

KEPT = "pynenc: interrupted; {} calls are kept: pynenc resume runs them\n"

BEGIN = """
import sys, os, pathlib
from tests import tasks
from tests.tasks import app, add, note, sleep_for, begin_and_wait_for
def busy(count):
    return begin_and_wait_for.parallelize([(f"begun{x}", "never") for x in range(count)])
"""

WAYS = {
    "a result": "busy(7)\nbegin_and_wait_for('begun7', 'never').result",
    "a group": "list(busy(8).results)",
    "a stream": "list(begin_and_wait_for.stream(((f'begun{x}', 'never') for x in range(8)), in_flight=8))",
    "plain code": "group = busy(8)\napp._cluster.sync()\nwhile True: sum(range(1000))",
    "await": (
        "import asyncio\n"
        "async def main():\n"
        "    await asyncio.gather(*(begin_and_wait_for(f'begun{x}', 'never').async_result() for x in range(8)))\n"
        "asyncio.run(main())"
    ),
    "threads": (
        "import threading\n"
        "threads = [threading.Thread(target=lambda x=x: begin_and_wait_for(f'begun{x}', 'never').result) for x in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()"
    ),
    "a callback": (
        "group = busy(8)\ngroup[0].add_done_callback(lambda done: done.result)\nimport time\ntime.sleep(1000)"
    ),
    "a script that handles it": "try:\n    list(busy(8).results)\nexcept KeyboardInterrupt:\n    sys.exit(-signal.SIGINT)",
}


def marker() -> str:
    return os.environ["PYNENC_TEST_MARKER"]


def in_terminal(directory: Path, script: str) -> Terminal:
    (directory / "script.py").write_text(BEGIN + script)
    return Terminal(["script.py"], directory)


def begun(directory: Path) -> int:
    return len(list(directory.glob("begun*")))


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_stops_all_and_says_so_in_one_line(tmp_path: Path, way: str) -> None:
    with in_terminal(tmp_path, "import signal\n" + WAYS[way]) as terminal:
        wait_until(lambda: begun(tmp_path) >= 2, "both workers are busy")
        if way in ("threads", "await", "a result"):
            wait_until(lambda: (tasks.app.report() or {}).get("unfinished") == 8, "all calls are there")
            tasks.close()
        began = time.monotonic()
        terminal.press(CTRL_C)
        code, shown = terminal.wait()
        assert time.monotonic() - began < STOPPED_S
    assert shown == "^C" + KEPT.format(8)
    assert code == (256 - signal.SIGINT if "handles" in way else -signal.SIGINT)
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)
    assert tasks.app.state_backend.count_kept() == 8


def test_ctrl_c_without_calls_is_pythons_own(tmp_path: Path) -> None:
    with in_terminal(tmp_path, "add(1).result\nopen('begun', 'w')\nimport time\ntime.sleep(1000)") as terminal:
        wait_until((tmp_path / "begun").exists, "the call is over")
        terminal.press(CTRL_C)
        code, shown = terminal.wait()
    assert code == -signal.SIGINT
    assert shown.startswith("^CTraceback")
    assert shown.endswith("KeyboardInterrupt\n")
    assert "pynenc" not in shown


def opens(process: psutil.Process, path: str) -> bool:
    """Whether a process has a file open."""
    try:
        return any(file.path == path for file in process.open_files())
    except psutil.Error:
        return False


@pytest.mark.parametrize("held", ["start_lock", "workers_lock"])
def test_ctrl_c_while_the_supervisor_starts(tmp_path: Path, held: str) -> None:
    """Before it is started by this script, and after; the lock that the test holds keeps it from going on."""
    launch.prepare_state_dir(tasks.app.conf.state_path)
    path = getattr(paths_of(tasks.app.conf.state_path, "tests"), held)
    with FileLock(path), in_terminal(tmp_path, "open('begun', 'w')\nadd(1).result") as terminal:
        wait_until((tmp_path / "begun").exists, "it makes its first call")
        if held == "workers_lock":
            log = paths_of(tasks.app.conf.state_path, "tests").log
            wait_until(lambda: any(opens(one, log) for one in own_processes(marker())), "the supervisor is started")
        else:
            script = psutil.Process(terminal.process.pid)
            wait_until(lambda: opens(script, path), "it waits for the lock")
        terminal.press(CTRL_C)
        code, shown = terminal.wait(STOPPED_S)
    assert (code, shown) == (-signal.SIGINT, "^Cpynenc: interrupted\n")
    wait_until(all_gone, "nothing was left", STOPPED_S)


def test_a_second_ctrl_c_ends_the_script_at_once(tmp_path: Path) -> None:
    with in_terminal(tmp_path, "list(busy(8).results)") as terminal:
        wait_until(lambda: begun(tmp_path) >= 2, "both workers are busy")
        report = tasks.app.report()
        assert report is not None
        supervisor = psutil.Process(report["pid"])
        tasks.close()
        supervisor.suspend()
        try:
            terminal.press(CTRL_C)
            time.sleep(0.1)  # Were the second one to come as early as the first, one would be all that is seen.
            terminal.press(CTRL_C)
            code, shown = terminal.wait(STOPPED_S)
        finally:
            supervisor.resume()
        assert code == -signal.SIGINT
        assert "Traceback" not in shown
    supervisor.terminate()
    wait_until(all_gone, "the rest has ended")


def test_ctrl_c_in_one_of_two_scripts_stops_its_calls_alone(tmp_path: Path) -> None:
    """Also those that its calls have made; the other's go on, in the same workers."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    waiting = tasks.begin_and_wait_for(str(tmp_path / "waits"), str(gate))
    wait_until((tmp_path / "waits").exists, "one worker is busy")
    script = (
        "from tests.left import parent\n"
        f"calls = [parent('begun', 'never', {str(log)!r}, 3000 + x) for x in range(2)]\n"
        f"list(note.parallelize([({str(log)!r}, 1000 + x) for x in range(100)]).results)"
    )
    with in_terminal(tmp_path, script) as terminal:
        wait_until((tmp_path / "begun").exists, "a call of its call runs in the other")
        wait_until(lambda: (tasks.app.report() or {})["unfinished"] == 104, "all its calls are there")
        later = tasks.note.parallelize([(str(log), 2000 + x) for x in range(100)])
        terminal.press(CTRL_C)
        assert terminal.wait()[1] == "^C" + KEPT.format(103)
    assert list(later.results) == list(range(2000, 2100))
    wait_until(lambda: (tasks.app.report() or {})["unfinished"] == 1, "nothing of the other one runs")
    assert lines_of(log) == list(range(2000, 2100))
    assert tasks.app.state_backend.count_kept() == 103
    (tmp_path / "never").touch()
    assert tasks.app.resume().wait(30)
    gate.touch()
    assert waiting.result == str(gate)
    assert lines_of(log) == [*range(1000, 1100), *range(2000, 2100), 3000, 3001]
    assert tasks.app.state_backend.count_kept() == 0


@pytest.mark.parametrize("way", ["a group", "await", "plain code"])
def test_sigterm_ends_a_script_like_ctrl_c(tmp_path: Path, way: str) -> None:
    with in_terminal(tmp_path, WAYS[way]) as terminal:
        wait_until(lambda: begun(tmp_path) >= 2, "both workers are busy")
        terminal.process.send_signal(signal.SIGTERM)
        code, shown = terminal.wait(STOPPED_S)
    assert code == -signal.SIGTERM  # 143 for a shell.
    assert shown.startswith("pynenc: ended by SIGTERM; ")
    assert shown.count("\n") == 1
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)
    assert tasks.app.state_backend.count_kept() > 0


def test_a_sigterm_handler_of_the_script_is_left_alone(tmp_path: Path) -> None:
    script = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: open('gate', 'w'))\n"
        "print(begin_and_wait_for('begun', 'gate').result)"
    )
    with in_terminal(tmp_path, script) as terminal:
        wait_until((tmp_path / "begun").exists, "the call runs")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == (0, "gate\n")


def test_a_sigterm_that_comes_twice_is_one(tmp_path: Path) -> None:
    """As `timeout` sends it: to the script, and to its process group."""
    with in_terminal(tmp_path, "list(busy(8).results)") as terminal:
        wait_until(lambda: begun(tmp_path) >= 2, "both workers are busy")
        supervised = psutil.Process(tasks.app.report()["pid"])  # type: ignore[index]
        tasks.close()
        supervised.suspend()  # So that the first one is not over when the second one comes.
        handled = psutil.Process(terminal.process.pid)
        files = len(handled.open_files()) + len(handled.net_connections("unix"))
        terminal.process.send_signal(signal.SIGTERM)
        wait_until(
            lambda: len(handled.open_files()) + len(handled.net_connections("unix")) > files, "it is being handled"
        )
        terminal.process.send_signal(signal.SIGTERM)
        supervised.resume()
        code, shown = terminal.wait()
    assert code == -signal.SIGTERM
    assert "ended by SIGTERM; 8 calls are kept" in shown
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)


def test_what_timeout_ends_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(BEGIN + "list(busy(8).results)")
    command = ["timeout", "1", sys.executable, "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert finished.returncode == 124
    assert finished.stdout == ""
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_in_the_foreground_ends_with_its_command(tmp_path: Path, number: signal.Signals) -> None:
    invocation = None
    command = ["-m", "pynenc", "--app", "tests.tasks.app", "runner", "start", "--foreground"]
    with Terminal(command, tmp_path) as terminal:
        wait_until(lambda: tasks.app.report() is not None, "it serves")
        invocation = tasks.begin_and_wait_for(str(tmp_path / "begun"), str(tmp_path / "never"))
        wait_until((tmp_path / "begun").exists, "a call runs")
        if number is signal.SIGINT:
            terminal.press(CTRL_C)
        else:
            terminal.process.send_signal(number)
        code, shown = terminal.wait(STOPPED_S)
    assert code == 0
    assert "Traceback" not in shown
    with pytest.raises(SupervisorLostError, match="pynenc resume runs them"):
        invocation.result  # noqa: B018
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)
    assert tasks.app.state_backend.count_kept() == 1


STOPPED_AS_IT_SERVES = """
import os, sys
from pynenc.app import Pynenc
from pynenc.cli import main

start = Pynenc.start_supervisor

def start_and_be_stopped(app, log):
    pid = start(app, log)
    os.kill(os.getpid(), {number})
    return pid

Pynenc.start_supervisor = start_and_be_stopped
sys.exit(main(["--app", "tests.tasks.app", "runner", "start", "--foreground"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_in_the_foreground_ends_when_its_command_is_stopped_as_soon_as_it_serves(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "script.py").write_text(STOPPED_AS_IT_SERVES.format(number=int(number)))
    with Terminal(["script.py"], tmp_path) as terminal:
        code, shown = terminal.wait()
    assert code == 0, shown
    assert "Traceback" not in shown
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)


class CutOff:
    """A socket in whose first message, or behind whose first read, Ctrl-C comes."""

    def __init__(self, connected: Any, what: str) -> None:
        self._connected = connected
        self._what = what

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)

    def send(self, message: bytes, flags: int) -> int:
        if self._what == "sent":
            self._what = ""
            self._connected.sendall(message[: len(message) // 2], flags)
            raise KeyboardInterrupt
        count: int = self._connected.send(message, flags)
        return count

    def recv_into(self, buffer: memoryview, size: int, flags: int) -> int:
        count: int = self._connected.recv_into(buffer, size, flags)
        if self._what == "read":
            self._what = ""
            raise KeyboardInterrupt
        return count


@pytest.mark.parametrize("what", ["sent", "read"])
def test_a_message_that_is_cut_off_by_ctrl_c_does_no_harm(what: str) -> None:
    """A script that catches it and goes on gets all results; nothing that was sent is taken for something else."""
    calls = tasks.sleep_for.parallelize([(0.01, x) for x in range(100)])
    connection = tasks.app._cluster._connection
    assert connection is not None
    connection._socket = CutOff(connection._socket, what)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        list(tasks.echo.parallelize([("x" * 1000,) for _ in range(100)]).results)
    assert list(tasks.echo.parallelize([(x,) for x in range(100)]).results) == list(range(100))
    assert list(calls.results) == list(range(100))


LOCKED = (
    "busy(8)\n"
    "app._cluster.sync()\n"
    "open('synced', 'w')\n"
    "while not os.path.exists('locked'): pass\n"
    "group = add.parallelize([(x, x) for x in range(100)])\n"
    "open('called', 'w')\n"
    "list(group.results)"
)


def lock_database() -> sqlite3.Connection:
    other = sqlite3.connect(tasks.app.state_backend.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_ctrl_c_ends_all_while_the_database_takes_nothing(tmp_path: Path) -> None:
    """What is not committed then is lost, and not counted."""
    with in_terminal(tmp_path, LOCKED) as terminal:
        wait_until(lambda: begun(tmp_path) >= 2 and (tmp_path / "synced").exists(), "both workers are busy")
        other = lock_database()
        (tmp_path / "locked").touch()
        wait_until((tmp_path / "called").exists, "calls are made that cannot be committed")
        began = time.monotonic()
        terminal.press(CTRL_C)
        code, shown = terminal.wait()
        assert time.monotonic() - began < STOPPED_S
    assert (code, shown) == (-signal.SIGINT, "^C" + KEPT.format(8))
    wait_until(all_gone, "supervisor and workers have ended", STOPPED_S)
    other.close()
    # The next supervisor runs them at once, since nobody could note that they were stopped on purpose.
    resumed = tasks.app.resume()
    (tmp_path / "never").touch()
    assert resumed.wait(30)
    assert resumed.calls == 8


def test_ctrl_c_in_one_of_two_scripts_is_heard_while_the_database_takes_nothing(tmp_path: Path) -> None:
    """Its calls stop, and are kept as soon as they are committed; until then nobody says that they are."""
    assert tasks.add(1, 1).result == 2
    with in_terminal(tmp_path, LOCKED) as terminal:
        wait_until(lambda: begun(tmp_path) >= 2 and (tmp_path / "synced").exists(), "both workers are busy")
        other = lock_database()
        (tmp_path / "locked").touch()
        wait_until(lambda: (tasks.app.report() or {})["unfinished"] == 108, "all calls are there")
        wait_until(lambda: bool((tasks.app.report() or {})["waits_for_disk"]), "a commit is held back")
        began = time.monotonic()
        terminal.press(CTRL_C)
        code, shown = terminal.wait()
        assert time.monotonic() - began < STOPPED_S
    assert code == -signal.SIGINT
    assert shown.endswith("pynenc: interrupted\n")
    other.close()
    wait_until(lambda: tasks.app.state_backend.count_kept() == 108, "the commit is tried again")
    (tmp_path / "never").touch()
    assert tasks.app.resume().wait(30)
    assert tasks.app.state_backend.count_kept() == 0
