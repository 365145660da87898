"""How a supervisor is started and found, in surroundings that programs really have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pynenc import Pynenc, Task
from pynenc.client import beginning
from pynenc.client.beginning import BegunSupervisor, begin_unless_running
from pynenc.client.paths import paths_of
from pynenc.exceptions import RunnerError
from pynenc.protocol import run_file
from pynenc.system.boot import begin_module, interpreter_flags
from pynenc.system.lock import FileLock
from tests import tasks
from tests.conftest import PROJECT, Finished, all_gone, is_alive, supervisor, wait_until

RunPython = Callable[..., Finished]

JOBS = """
import os, subprocess, sys, time
from pynenc import Pynenc
app = Pynenc(config_values={"num_workers": 1})

@app.task
def add(x, y):
    print("adding")
    return x + y

@app.task(max_worker_losses=0)
def die():
    os.kill(os.getpid(), 9)

@app.task(max_worker_losses=0)
def shell(command):
    return subprocess.run(["sh", "-c", command]).returncode

@app.task
def flags():
    return __debug__, sys.warnoptions, sys.flags.dev_mode, sys.flags.utf8_mode, sys.flags.no_user_site

@app.task
def fork_daemon(gate):
    if os.fork() == 0:
        os.setsid()
        for fd in (0, 1, 2):
            os.close(fd)
        while not os.path.exists(gate):
            time.sleep(0.01)
        os._exit(0)
"""


def the_run_file() -> Path:
    return Path(paths_of(tasks.app.conf.state_path, tasks.app.app_id).run_file)


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)])
def test_closed_standard_files_are_nobodys_connection(
    closed: tuple[int, ...], run_python: RunPython, tmp_path: Path
) -> None:
    script = (
        "import os, sys\nfrom jobs import add\n"
        "result = sum(add(x, 1).result for x in range(3))\n"
        "with open('told', 'w') as file:\n    file.write(str(result))\n"
    )
    start = (
        f"import os, sys; [os.close(fd) for fd in {closed}]; os.execv(sys.executable, [sys.executable, 'script.py'])"
    )
    assert run_python({"jobs.py": JOBS, "script.py": script}, "-c", start).code == 0
    assert (tmp_path / "project" / "told").read_text() == "6"


def test_signals_that_a_script_blocks_are_not_blocked_in_its_workers(run_python: RunPython) -> None:
    script = (
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from jobs import die\n"
        "print(type(die().exception).__name__)\n"
    )
    finished = run_python({"jobs.py": JOBS, "script.py": script}, "script.py")
    assert finished == (0, "WorkerLostError\n", "")


def test_workers_run_code_as_the_script_does(run_python: RunPython) -> None:
    script = "from jobs import flags\nhere, there = flags.func(), flags().result\nprint(here == there, there)\n"
    options = ("-O", "-s", "-W", "error::SyntaxWarning", "-X", "dev", "-X", "utf8")
    finished = run_python({"jobs.py": JOBS, "script.py": script}, *options, "script.py")
    assert finished.out == "True (False, ['default', 'error::SyntaxWarning'], True, 1, 1)\n"


def test_flags_are_those_that_say_how_code_runs() -> None:
    command = [sys.executable, "-B", "-E", "-OO", "-bb", "-W", "error", "-X", "faulthandler", "-X", "importtime"]
    program = "from pynenc.system.boot import begin_module, interpreter_flags; print(interpreter_flags())"
    environment = {**os.environ, "PYTHONPATH": ""}
    flags = ["-O", "-O", "-B", "-E", "-b", "-b", "-Werror", "-X", "faulthandler"]
    shown = subprocess.run(
        [*command, "-c", program], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert [one for one in eval(shown) if "BytesWarning" not in one] == flags
    assert all(isinstance(one, str) for one in interpreter_flags())


def test_a_signal_to_the_process_group_of_a_call_hits_that_call_alone(run_python: RunPython) -> None:
    script = (
        "from jobs import add, app, shell\n"
        "add(1, 2).result\n"
        "pid = app.report()['pid']\n"
        "print(type(shell('kill 0').exception).__name__, add(1, 2).result, app.report()['pid'] == pid)\n"
    )
    finished = run_python({"jobs.py": JOBS, "script.py": script}, "script.py")
    assert finished.out.splitlines()[1:] == ["adding", "WorkerLostError 3 True"] or finished.out.endswith(
        "WorkerLostError 3 True\n"
    )


def test_a_relative_temporary_directory_is_that_of_the_script(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "project" / "rel").mkdir(parents=True)
    script = "import os\nfrom jobs import add\nos.chdir('/')\nprint(add(1, 2).result)\n"
    finished = run_python({"jobs.py": JOBS, "script.py": script}, "script.py", TMPDIR="rel")
    assert finished.out.endswith("3\n"), finished


def test_a_child_that_outlives_its_worker_holds_up_no_start(run_python: RunPython, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    files = {"jobs.py": JOBS, "script.py": f"from jobs import fork_daemon\nfork_daemon({str(gate)!r}).result\n"}
    try:
        assert run_python(files, "script.py") == (0, "", "")
        again = "import jobs, os\nprint(jobs.add(1, 2).result)\n"
        assert run_python({"again.py": again}, "again.py", timeout=9).out.endswith("3\n")
    finally:
        gate.touch()


@pytest.mark.parametrize("text", ["[1]", "null", '{"address": 5, "key": "00"}', '{"address": "a/b", "key": "zz"}', "{"])
def test_a_run_file_that_says_nothing_is_passed_over(text: str) -> None:
    path = the_run_file()
    path.parent.mkdir(mode=0o700)
    path.write_text(text)
    assert tasks.add(1, 2).result == 3


@pytest.mark.parametrize("path", ["/nowhere/socket", "/dev/null/socket", "/dev/null", "/" + 200 * "x"])
def test_an_address_where_nobody_listens_is_passed_over(path: str) -> None:
    there = the_run_file()
    there.parent.mkdir(mode=0o700)
    run_file.write(str(there), run_file.Address(path, b"key"))
    assert tasks.add(1, 2).result == 3


@pytest.mark.parametrize("executable", ["/nowhere/python", ""])
def test_an_interpreter_that_cannot_be_started_is_named(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", executable)
        with pytest.raises(RunnerError, match="interpreter") as raised:
            tasks.add(1, 2)
    assert "state directory" not in str(raised.value)
    assert tasks.add(1, 2).result == 3


def test_another_python_is_refused_and_may_ask_and_stop(run_python: RunPython) -> None:
    other = "import sys\nsys.implementation.cache_tag = 'cpython-399'\nfrom jobs import app, add\n"
    files = {"jobs.py": JOBS, "call.py": f"{other}add(1, 2)\n", "stop.py": f"{other}print(app.stop_supervisor())\n"}
    started = run_python(files, "-m", "pynenc", "--app", "jobs.app", "runner", "start")
    assert started.code == 0, started.err
    refused = run_python({}, "call.py")
    assert refused.code == 1
    assert f"runs {sys.implementation.cache_tag}, this script cpython-399: stop it first" in refused.err
    assert run_python({}, "stop.py") == (0, "True\n", "")
    wait_until(all_gone, "the supervisor has ended")


def test_an_odd_umask_takes_nothing_from_the_state_directory(run_python: RunPython, tmp_path: Path) -> None:
    script = (
        "import os\nos.umask(0o777)\nfrom jobs import add, app\n"
        "add(1, 2).result\n"
        "state = app.conf.state_path\n"
        "for name in sorted(['.', *os.listdir(state)]):\n"
        "    if name != '.gitignore':\n"
        "        print(name, oct(os.stat(os.path.join(state, name)).st_mode & 0o777))\n"
    )
    finished = run_python({"jobs.py": JOBS, "script.py": script}, "script.py")
    assert finished.code == 0, finished.err
    modes = dict(line.rsplit(" ", 1) for line in finished.out.splitlines() if line.startswith((".", "pynenc")))
    assert modes.pop(".") == "0o700"
    assert len(modes) > 4
    assert set(modes.values()) == {"0o600"}


def test_a_supervisor_puts_back_what_leads_to_it() -> None:
    assert tasks.add(1, 2).result == 3
    address = run_file.read(str(the_run_file()))
    assert address is not None
    os.unlink(address.path)
    os.rmdir(os.path.dirname(address.path))
    the_run_file().unlink()
    wait_until(lambda: the_run_file().exists() and os.path.exists(address.path), "both are there again")
    assert run_file.read(str(the_run_file())) == address
    pid = supervisor().pid
    program = "from tests import tasks; print(tasks.add(1, 2).result, tasks.app.report()['pid'])"
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYNENC__APP_ID": "tests"},
        timeout=40,
    )
    assert other.stdout == f"3 {pid}\n", other.stderr


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_nothing_runs_beside_a_supervisor_that_is_not_found(tmp_path: Path, run_python: RunPython) -> None:
    state = Path(os.environ["PYNENC__STATE_DIR"])
    state.mkdir(mode=0o700)
    lock = FileLock(paths_of(str(state), "pynenc").workers_lock)
    assert lock.acquire_nowait()
    lock.sign("12345")
    try:
        finished = run_python({"jobs.py": JOBS, "script.py": "from jobs import add\nadd(1, 2)\n"}, "script.py")
    finally:
        lock.release()
    assert finished.code == 1
    assert "(pid 12345), or workers of it, are still there" in finished.err


def test_a_script_that_starts_one_supervisor_after_the_other_has_no_zombies() -> None:
    started = set()
    for x in range(4):
        assert tasks.add(x, 1).result == x + 1
        serving = supervisor()
        started.add(serving.pid)
        tasks.close()
        # All of it: one that is about to end has no environment any more by which `all_gone` would know it.
        wait_until(lambda: not is_alive(serving), "it has ended")  # noqa: B023
    assert len(started) == 4
    left = [child.pid for child in psutil.Process().children() if child.pid in started]
    assert len(left) <= 1, "the last one is reaped when the next one starts"


def test_an_interpreter_that_was_begun_for_nothing_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    begun = BegunSupervisor()
    begun.abandon()
    assert begun.process.wait() == 0
    assert capfd.readouterr() == ("", "")


def test_none_is_begun_where_a_supervisor_runs() -> None:
    state, app_id = tasks.app.conf.state_path, tasks.app.app_id
    begun = begin_unless_running(state, app_id)
    assert begun is not None
    begun.abandon()
    begun.process.wait()
    assert tasks.add(1, 2).result == 3
    assert begin_unless_running(state, app_id) is None


def test_threads_that_make_their_first_calls_at_once_begin_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def begin(*arguments: Any, **options: Any) -> Any:
        started.append(begin_module(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(beginning, "begin_module", begin)
    app = Pynenc("at once", tasks.app.config_values)
    add = Task(app, tasks.add.func)
    at_once = threading.Barrier(8)

    def call(x: int) -> int:
        at_once.wait()
        return add(x, 1).result

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == list(range(1, 9))
    app.close()
    assert len(started) == 1


def test_calls_that_fail_at_once_leave_no_interpreter_behind(run_python: RunPython) -> None:
    script = (
        "import psutil, threading\nfrom jobs import add\n"
        "try:\n    add(1, threading.Lock())\n"
        "except TypeError as error:\n    print(str(error)[:25])\n"
        "print(add(1, 2).result)\n"
        "print(len(psutil.Process().children()))\n"
    )
    assert (
        run_python({"jobs.py": JOBS, "script.py": script}, "script.py").out
        == "jobs.add(): argument 'y':\nadding\n3\n1\n"
    )


def test_a_supervisor_runs_the_pynenc_of_its_script(run_python: RunPython, tmp_path: Path) -> None:
    """Though another one is installed."""
    shutil.copytree(PROJECT / "pynenc", tmp_path / "own" / "pynenc", ignore=shutil.ignore_patterns("__pycache__"))
    jobs = (
        f"import sys\nif {str(tmp_path / 'own')!r} not in sys.path:\n    sys.path.insert(0, {str(tmp_path / 'own')!r})\n"
        "import pynenc\napp = pynenc.Pynenc()\n@app.task\ndef where():\n    return pynenc.__file__\n"
    )
    script = "import jobs, pynenc\nprint(jobs.where().result == pynenc.__file__)\n"
    finished = run_python({"jobs.py": jobs, "script.py": script}, "script.py")
    assert (finished.out, finished.err) == ("True\n", "")


def test_a_supervisor_whose_starter_was_killed_before_it_came_ends_soon(run_python: RunPython) -> None:
    script = (
        "import os, signal\nfrom pynenc.client import launch\nfrom tests.tasks import add\n"
        "start = launch._start\n"
        "def start_and_die(*arguments):\n    start(*arguments)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "launch._start = start_and_die\n"
        "add(1, 2)\n"
    )
    assert run_python({"script.py": script}, "script.py", PYTHONPATH=str(PROJECT)).code == -9
    wait_until(all_gone, "nobody else came", 15)
