"""Many at once: scripts, clients, threads, forks, apps; and clocks that step."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pynenc.exceptions import RunnerError
from tests import tasks
from tests.conftest import Finished, all_gone, configure, wait_until

RunPython = Callable[..., Finished]

CLIENTS = 50
CALLS = 1_000

TASKS = """
from pynenc import Pynenc
app = Pynenc()
@app.task
def add(x: int, y: int) -> int:
    return x + y
"""


PID = """
import os
@app.task
def pid() -> tuple[int, int]:
    return os.getpid(), os.getppid()
"""


def in_child(act: Callable[[], None]) -> int:
    """Fork, do something in the child; its pid. Its exit code is 0 when nothing was raised."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        act()
        tasks.app.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def test_twenty_scripts_that_start_at_once_share_one_supervisor(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS + PID)
    (tmp_path / "script.py").write_text(
        "import sys; from tasks import *\nprint(pid().result[1], flush=True); sys.stdin.read()\n"
    )
    scripts = [
        subprocess.Popen(
            [sys.executable, "script.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(20)
    ]
    try:
        fork_servers = {script.stdout.readline() for script in scripts}  # type: ignore[union-attr]
    finally:
        for script in scripts:
            script.communicate()
    assert len(fork_servers) == 1
    assert all(script.returncode == 0 for script in scripts)


def test_fifty_clients_make_a_thousand_calls_each_at_one_supervisor(tmp_path: Path) -> None:
    report = tasks.app.report() if tasks.add(1, 2).result else None
    assert report is not None

    def be_client(number: int) -> Callable[[], None]:
        def call() -> None:
            group = tasks.add.parallelize([(x, number) for x in range(CALLS // 2)])
            singles = [tasks.add(x, number) for x in range(CALLS // 2)]
            expected = [x + number for x in range(CALLS // 2)]
            assert list(group.results) == expected
            assert [one.get(50) for one in singles] == expected
            assert tasks.app.report()["pid"] == report["pid"]  # type: ignore[index]

        return call

    clients = [in_child(be_client(number)) for number in range(CLIENTS)]
    assert [os.waitpid(client, 0)[1] for client in clients] == [0] * CLIENTS
    after = tasks.app.report()
    assert after is not None
    assert (after["pid"], after["clients"], after["unfinished"]) == (report["pid"], 1, 0)
    counts = {one.task_id: one for one in tasks.app.state_backend.counts_by_task()}["tests.tasks.add"]
    assert (counts.calls, counts.succeeded) == (CLIENTS * CALLS + 1, CLIENTS * CALLS + 1)


def test_a_child_that_is_forked_while_a_batch_is_open_and_a_thread_waits_has_its_own_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        monkeypatch, NUM_WORKERS=6
    )  # Four of them have to wait: no call of the parent may end before the child has asked.
    gate, marks = tmp_path / "gate", tmp_path / "marks"
    held = tasks.wait_for(str(gate))
    done = tasks.add(1, 1)
    assert done.result == 2
    waiting = threading.Thread(target=held.wait)
    waiting.start()
    opened = [tasks.note_behind(str(gate), str(marks), x) for x in range(3)]

    def child() -> None:
        for parents in (held, *opened):
            with pytest.raises(RunnerError, match="belongs to the process that forked this one"):
                parents.get(timeout=30)
        assert done.result == 2  # It had its outcome.
        assert tasks.app.get_invocation(done.invocation_id).result == 2
        assert tasks.add(20, 2).result == 22
        assert list(tasks.add.parallelize([(x, 1) for x in range(100)]).results) == list(range(1, 101))

    assert os.waitpid(in_child(child), 0)[1] == 0
    gate.touch()
    waiting.join(30)
    assert held.result == str(gate)
    assert [one.result for one in opened] == [0, 1, 2]
    assert sorted(marks.read_text().split()) == ["0", "1", "2"], "the child does not send what its parent had collected"


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_processes_of_multiprocessing_are_clients_that_lose_nothing(
    method: str, run_python: RunPython, tmp_path: Path
) -> None:
    """Such processes leave without what `atexit` has registered."""
    marks = tmp_path / "marks"
    jobs = (
        "import os\nfrom pynenc import Pynenc\napp = Pynenc()\n"
        "@app.task\ndef note(path: str, x: int) -> int:\n"
        "    with open(path, 'a') as file:\n        file.write(f'{x}\\n')\n    return x\n"
        "def make(path: str, x: int) -> int:\n"
        "    for y in range(10):\n        note(path, 100 * x + y)\n"
        "    return note(path, 100 * x + 10).result if x % 2 else x\n"
    )
    script = (
        "import multiprocessing, sys\nfrom jobs import make, note\n"
        "if __name__ == '__main__':\n"
        f"    path, own = {str(marks)!r}, note({str(marks)!r}, 0)\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    children = [context.Process(target=make, args=(path, x)) for x in (1, 2, 3)]\n"
        "    for child in children: child.start()\n"
        "    for child in children: child.join()\n"
        "    assert [child.exitcode for child in children] == [0, 0, 0]\n"
        "    assert own.result == 0\n"
    )
    finished = run_python({"jobs.py": jobs, "script.py": script}, "script.py")
    assert (finished.code, finished.err) == (0, "")
    wait_until(all_gone, "the supervisor has drained")
    expected = [0, *(100 * x + y for x in (1, 2, 3) for y in range(10 + x % 2))]
    assert sorted(map(int, marks.read_text().split())) == sorted(expected)


def test_sixteen_threads_call_at_once() -> None:
    results: dict[int, bool] = {}

    def call(number: int) -> None:
        singles = [tasks.add(x, number) for x in range(100)]
        group = tasks.add.parallelize([(x, number) for x in range(500)])
        stream = list(tasks.add.stream(((x, number) for x in range(50)), in_flight=4))
        results[number] = (
            [one.result for one in singles] == [x + number for x in range(100)]
            and list(group.results) == [x + number for x in range(500)]
            and stream == [x + number for x in range(50)]
        )

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(16), True)


class SeenLock:
    """A lock that tells when another thread waits for it than the one that holds it."""

    def __init__(self, lock: Any, holder: threading.Thread) -> None:
        self._lock = lock
        self._holder = holder
        self.is_waited_for = False

    def __enter__(self) -> None:
        self.is_waited_for |= threading.current_thread() is not self._holder
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_call_in_a_thread_while_another_one_connects_waits_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = tasks.app._cluster
    lock = cluster._lock = SeenLock(cluster._lock, threading.current_thread())  # type: ignore[assignment]
    number_batches = cluster._number_batches
    outcomes: list[object] = []

    def call() -> None:
        try:
            outcomes.append(tasks.add(1, 2).result)
        except RunnerError as error:
            outcomes.append(error)

    other = threading.Thread(target=call)

    def number_later(client: int) -> None:
        other.start()
        wait_until(lambda: lock.is_waited_for or bool(outcomes), "the other thread waits, or has gone on")
        number_batches(client)

    monkeypatch.setattr(cluster, "_number_batches", number_later)
    assert tasks.add(3, 4).result == 7
    other.join()
    assert outcomes == [3]


def test_what_another_thread_is_just_sending_is_there_for_those_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tasks.wait_for(str(tmp_path / "gate"))
    cluster = tasks.app._cluster
    batcher = cluster._batcher
    monkeypatch.setattr(batcher, "_wake_flusher", lambda: None)
    call = tasks.add(1, 2)
    is_sending = threading.Event()
    asked: list[object] = []
    send = batcher._send

    def send_later(*batch: Any) -> None:
        is_sending.set()
        wait_until(lambda: lock.is_waited_for or bool(asked), "the other thread waits, or has gone on")
        send(*batch)

    batcher._send = send_later
    other = threading.Thread(target=batcher.flush)
    lock = cluster._lock = batcher._lock = SeenLock(batcher._lock, other)  # type: ignore[assignment]
    other.start()
    assert is_sending.wait(30)
    try:
        asked.append(tasks.app.get_invocation(call.invocation_id).arguments.kwargs)
    finally:
        asked.append(None)
        other.join()
        (tmp_path / "gate").touch()
    assert (asked[0], call.result) == ({"x": 1, "y": 2}, 3)
    assert held.result


def test_two_apps_of_one_process_and_one_state_directory_have_a_supervisor_each(
    run_python: RunPython, tmp_path: Path
) -> None:
    other = TASKS.replace("Pynenc()", "Pynenc('other')")
    script = (
        "import one, other\n"
        "pairs = [(one.add(x, 1), other.add(x, 2)) for x in range(500)]\n"
        "groups = one.add.parallelize([(x, 1) for x in range(500)]), other.add.parallelize([(x, 2) for x in range(500)])\n"
        "assert [(a.result, b.result) for a, b in pairs] == [(x + 1, x + 2) for x in range(500)]\n"
        "assert list(zip(*(group.results for group in groups))) == [(x + 1, x + 2) for x in range(500)]\n"
        "assert one.app.report()['pid'] != other.app.report()['pid']\n"
        "one.app.close()\n"
        "assert other.add(1, 2).result == 3 == one.add(1, 2).result\n"
        "print(sum(counts.calls for app in (one.app, other.app) for counts in app.state_backend.counts_by_task()))\n"
    )
    finished = run_python({"one.py": TASKS, "other.py": other, "script.py": script}, "script.py")
    assert (finished.code, finished.out) == (0, "2002\n"), finished.err


def test_clocks_that_step_change_nothing(run_python: RunPython) -> None:
    """The wall clock jumps by up to a year, to and fro, in the script, the supervisor and the workers alike."""
    clock = (
        "import random, time\n"
        "real, chance = time.time, random.Random()\n"
        "time.time = lambda: real() + chance.uniform(-3e7, 3e7)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    jobs = (
        "import time, pathlib\nfrom pynenc import Pynenc\nfrom pynenc.exceptions import RetryError\napp = Pynenc()\n"
        "@app.task\ndef add(x: int, y: int) -> int:\n    return x + y\n"
        "@app.task(max_retries=3, retry_for=(ValueError,), retry_delay=0.05)\n"
        "def fail_twice(path: str) -> int:\n"
        "    with open(path, 'a') as file:\n        file.write('x')\n"
        "    if len(pathlib.Path(path).read_text()) < 3:\n        raise ValueError\n    return 3\n"
        "@app.task(timeout=30, expires=30)\ndef in_time(x: int) -> int:\n    time.sleep(0.02)\n    return x\n"
        "@app.task(timeout=0.1)\ndef late() -> None:\n    time.sleep(30)\n"
        "@app.task(expires=0.05, priority=-1)\ndef expire() -> None:\n    pass\n"
    )
    script = (
        "import sys, time\nfrom jobs import *\nfrom pynenc.exceptions import TaskTimeoutError, InvocationExpiredError\n"
        "stepped = max(abs(time.time() - time.time()) for _ in range(20)) > 1e5\n"
        "assert stepped\n"
        "began = time.monotonic()\n"
        "assert list(in_time.parallelize([(x,) for x in range(20)]).results) == list(range(20))\n"
        "assert fail_twice(sys.argv[1]).get(timeout=20) == 3\n"
        "assert isinstance(late().exception, TaskTimeoutError)\n"
        "busy = in_time.parallelize([(x,) for x in range(20)])\n"
        "assert isinstance(expire().exception, InvocationExpiredError)\n"
        "assert [one.result for one in busy] == list(range(20))\n"
        "assert not late().wait(timeout=0.01)\n"
        "assert list(add.stream(((x, 1) for x in range(100)), in_flight=4)) == list(range(1, 101))\n"
        "assert time.monotonic() - began < 25\n"
    )
    files = {"clock/sitecustomize.py": clock, "jobs.py": jobs, "script.py": script}
    finished = run_python(files, "script.py", "marks", PYTHONPATH="clock", PYNENC__NUM_WORKERS="1")
    assert (finished.code, finished.err) == (0, "")


def test_times_of_years_are_no_trouble(tmp_path: Path) -> None:
    """No system call takes a wait of more than 24 days."""
    patient = tasks.add.with_options(expires=1e8, timeout=1e9)
    assert patient(1, 2).get(timeout=1e10) == 3
    gate = tmp_path / "gate"
    held = tasks.wait_for.with_options(expires=1e8)(str(gate))
    threading.Timer(0.2, gate.touch).start()
    assert held.get(timeout=float("inf")) == str(gate)
