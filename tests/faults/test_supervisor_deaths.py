"""A supervisor that is killed: another one takes its work up, and the script goes on.

| what the script does | what it sees |
| --- | --- |
| waits for a result, a group, a stream, a callback, an `await` | a pause; then all results, in order |
| goes on submitting | nothing |
| has calls with rerun_on_worker_loss=False under way | WorkerLostError, or SupervisorLostError for what was not committed |
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pynenc import InvocationStatus, WorkerLostError
from pynenc.client.connection import Connection
from pynenc.client.launch import Address
from pynenc.client.paths import paths_of
from pynenc.exceptions import SupervisorLostError
from pynenc.protocol.frames import frame
from pynenc.protocol.messages import Kind
from pynenc.system.lock import FileLock
from tests import concurrent_tasks, examples, rules, tasks
from tests.conftest import (
    PROJECT,
    Finished,
    Lateness,
    configure,
    is_alive,
    own_processes,
    supervisor,
    talking_script,
    wait_until,
)


def kill_supervisor() -> None:
    process = supervisor()
    process.send_signal(signal.SIGKILL)


def test_a_script_that_waits_gets_its_result_from_another_supervisor(tmp_path: Path, lateness: Lateness) -> None:
    gate = tmp_path / "gate"
    began = time.monotonic()
    tasks.add(1, 2).result  # noqa: B018
    start_s = time.monotonic() - began
    invocation = tasks.wait_for(str(gate))
    tasks.app._cluster.sync()
    kill_supervisor()
    began = time.monotonic()
    threading.Timer(0.01, gate.touch).start()
    assert invocation.result is not None
    # Another supervisor and its workers start as the first did: on a machine with much else to do that takes longer.
    assert time.monotonic() - began < 1 + 3 * start_s + lateness.of_all_s
    assert invocation.status is InvocationStatus.SUCCESS


@pytest.mark.parametrize("seed", range(examples(4)))
def test_a_group_is_whole_and_in_order_whenever_the_supervisor_dies(seed: int) -> None:
    chance = random.Random(seed)
    tasks.add(1, 2).result  # noqa: B018  # It is up.
    for _ in range(3):
        killer = threading.Timer(chance.uniform(0.0, 0.15), supervisor().kill)
        killer.start()
        group = tasks.sleep_for.parallelize([(0.0005, x) for x in range(1500)])
        singles = [tasks.add(x, 1) for x in range(500)]
        assert list(group.results) == list(range(1500))
        assert [one.result for one in singles] == list(range(1, 501))
        killer.join()


@pytest.mark.parametrize("said", [b"", frame(Kind.CHALLENGE, bytes(32))])
def test_a_supervisor_that_dies_while_it_is_greeted_counts_as_gone(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    theirs.close()
    with pytest.raises(SupervisorLostError, match="during the handshake"):
        Connection(ours, Address("nowhere", b"key"), lambda kind, body: None, is_worker=False)


def test_what_was_not_committed_is_sent_again() -> None:
    tasks.add(1, 2).result  # noqa: B018
    process = supervisor()
    process.suspend()
    invocations = [tasks.add(x, 1) for x in range(300)]
    group = tasks.add.parallelize([(x, 2) for x in range(5000)])
    process.kill()
    assert [one.result for one in invocations] == list(range(1, 301))
    assert list(group.results) == list(range(2, 5002))


def test_a_script_that_waits_for_nothing_loses_nothing_when_it_ends(
    run_python: Callable[..., Finished], tmp_path: Path
) -> None:
    script = (
        "import os, signal\n"
        "from jobs import app, note\n"
        f"ran = {str(tmp_path / 'ran')!r}\n"
        "note(ran, -1).result\n"
        "pid = app.report()['pid']\n"
        "os.kill(pid, signal.SIGSTOP)\n"
        "for x in range(700):\n"
        "    note(ran, x)\n"
        "os.kill(pid, signal.SIGKILL)\n"
    )
    jobs = (
        "from pynenc import Pynenc\n"
        "app = Pynenc()\n"
        "@app.task\n"
        "def note(path: str, x: int) -> None:\n"
        "    with open(path, 'a') as file:\n"
        "        file.write(f'{x}\\n')\n"
    )
    finished = run_python({"jobs.py": jobs, "script.py": script}, "script.py")
    assert (finished.code, finished.err) == (0, "")
    ran = tmp_path / "ran"
    wait_until(lambda: len(ran.read_text().split()) == 701, "all have run")
    assert sorted(map(int, ran.read_text().split())) == list(range(-1, 700))


def test_a_script_that_ends_while_another_supervisor_is_looked_for_loses_nothing(tmp_path: Path) -> None:
    """Its helper thread sends what was called last, notices that nobody is there, and is kept from starting another one."""
    gate, ran = tmp_path / "gate", tmp_path / "ran"
    (tmp_path / "script.py").write_text(
        "import sys, time\n"
        "from tests.tasks import app, note, wait_for\n"
        f"held = wait_for({str(gate)!r})\n"
        "app._cluster.sync()\n"
        "print(app.report()['pid'], flush=True)\n"
        "sys.stdin.readline()\n"
        f"note({str(ran)!r}, 1)\n"
        "while not app._cluster._is_changing:\n"
        "    time.sleep(0.001)\n"
        "print('ends', flush=True)\n"
    )
    with talking_script(tmp_path) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        supervisor = psutil.Process(int(script.stdout.readline()))
        supervisor.kill()
        wait_until(lambda: not is_alive(supervisor), "it is gone")
        with FileLock(paths_of(tasks.app.conf.state_path, tasks.app.app_id).start_lock):
            script.stdin.write("\n")
            script.stdin.flush()
            assert script.stdout.readline() == "ends\n"
            with pytest.raises(subprocess.TimeoutExpired):
                script.wait(0.5)
        gate.touch()
        assert script.wait(30) == 0
    wait_until(ran.exists, "what was called last has run")


def test_a_script_whose_last_calls_are_lost_says_so(
    run_python: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    script = (
        "import os, signal, time\n"
        "from tests.tasks import app, note, wait_for\n"
        f"held = wait_for({str(gate)!r})\n"
        "app._cluster.sync()\n"
        "pid = app.report()['pid']\n"
        "os.rename('state', 'moved'), open('state', 'w').close()\n"
        "os.kill(pid, signal.SIGKILL)\n"
        "while os.path.exists(f'/proc/{pid}') and open(f'/proc/{pid}/stat').read().split()[2] != 'Z':\n"
        "    time.sleep(0.001)\n"
        "note('ran', 1)\n"
    )
    finished = run_python({"script.py": script}, "script.py", PYTHONPATH=str(PROJECT), PYNENC__STATE_DIR="state")
    assert finished.code == 0
    assert "not all calls were acknowledged: the state directory" in finished.err
    assert len(finished.err.splitlines()) == 1
    # Whoever comes next takes away what the killed supervisor has left.
    gate.touch()
    configure(monkeypatch, STATE_DIR=tmp_path / "project" / "moved")
    assert tasks.add(1, 2).result == 3


def test_calls_that_may_not_be_sent_again_are_told_of_though_nobody_waits(run_python: Callable[..., Finished]) -> None:
    script = (
        "import os, signal\n"
        "from tests.left import note_once\n"
        "from tests.tasks import add, app\n"
        "assert add(1, 2).result == 3\n"
        "pid = app.report()['pid']\n"
        "os.kill(pid, signal.SIGSTOP)\n"
        "note_once('log', 1, 'gate')\n"
        "os.kill(pid, signal.SIGKILL)\n"
    )
    finished = run_python({"script.py": script}, "script.py", PYTHONPATH=str(PROJECT))
    assert finished.code == 0
    assert re.fullmatch("not all calls were acknowledged: batch .*rerun_on_worker_loss is False\n", finished.err)


def test_a_script_that_has_changed_its_directory_finds_its_work_again(
    run_python: Callable[..., Finished], tmp_path: Path
) -> None:
    script = (
        "import os, signal\n"
        "from jobs import app, wait_for\n"
        "held = wait_for('gate')\n"
        "app._cluster.sync()\n"
        "os.mkdir('elsewhere'), os.chdir('elsewhere')\n"
        "open('pyproject.toml', 'w').write('[tool.pynenc.task]\\nmax_retries = 5\\n')\n"
        "os.kill(app.report()['pid'], signal.SIGKILL)\n"
        "open('../gate', 'w').close()\n"
        "assert held.result == 'gate'\n"
        "assert app.get_invocation(held.invocation_id).result == 'gate'\n"
        "assert wait_for.conf.max_retries == 3\n"
        "assert os.listdir() == ['pyproject.toml']\n"
        "assert os.listdir('../.pynenc')\n"
        "app.close()\n"
        "assert wait_for('../gate').result == '../gate'\n"  # A new beginning, in another project.
        "assert app.get_invocation(wait_for('../gate').invocation_id).result == '../gate'\n"
        "assert os.listdir('.pynenc')\n"
    )
    jobs = (
        "import os, time\n"
        "from pynenc import Pynenc\n"
        "app = Pynenc()\n"
        "@app.task\n"
        "def wait_for(path: str) -> str:\n"
        "    while not os.path.exists(path):\n"
        "        time.sleep(0.005)\n"
        "    return path\n"
    )
    project = "[tool.pynenc.task]\nmax_retries = 3\n"
    files = {"jobs.py": jobs, "script.py": script, "pyproject.toml": project}
    finished = run_python(files, "script.py", PYNENC__STATE_DIR="")
    assert (finished.code, finished.err) == (0, "")


def test_streams_callbacks_and_awaits_go_on() -> None:
    tasks.add(1, 2).result  # noqa: B018
    seen: list[int] = []
    for at, value in enumerate(tasks.add.stream(((x, 1) for x in range(300)), in_flight=8)):
        assert value == at + 1
        if at == 100:
            kill_supervisor()
    called = tasks.sleep_for(0.2, 5)
    called.add_done_callback(lambda done: seen.append(done.result))
    tasks.app._cluster.sync()
    kill_supervisor()
    wait_until(lambda: seen == [5], "the callback is called")

    async def wait() -> list[int]:
        waited = [tasks.sleep_for(0.2, x) for x in range(3)]
        tasks.app._cluster.sync()
        kill_supervisor()
        return list(await asyncio.gather(*(one.async_result() for one in waited)))

    assert asyncio.run(wait()) == [0, 1, 2]


def test_threads_that_wait_at_once_all_go_on() -> None:
    results: dict[int, int] = {}

    def wait(x: int) -> None:
        results[x] = tasks.sleep_for(0.3, x).result

    threads = [threading.Thread(target=wait, args=(x,)) for x in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: (tasks.app.report() or {}).get("unfinished", 0) == 4, "all are submitted")
    kill_supervisor()
    for thread in threads:
        thread.join(30)
    assert results == {x: x for x in range(4)}


def test_calls_that_wait_for_calls_and_results_as_arguments_go_on() -> None:
    tasks.add(1, 2).result  # noqa: B018
    killer = threading.Timer(0.05, supervisor().kill)
    killer.start()
    fibonacci = rules.fibonacci(12)
    awaited = concurrent_tasks.fibonacci(8)
    slow = tasks.sleep_for.parallelize([(0.02, x) for x in range(10)])
    total = tasks.add(tasks.add(tasks.sleep_for(0.2, 1), 1), tasks.add(tasks.sleep_for(0.2, 2), 2))
    assert fibonacci.get(timeout=60) == 144
    assert awaited.get(timeout=60) == 21
    assert total.get(timeout=60) == 6
    assert list(slow.results) == list(range(10))
    killer.join()


class Chain:
    """Scripts each of whose calls takes the result of the next one's; the last one's waits for a file."""

    def __init__(self, directory: Path, gate: Path, count: int) -> None:
        (directory / "script.py").write_text(
            "import sys\nfrom tests import tasks\n"
            "tasks.add(1, 2).result\n"
            "print('connected', flush=True)\n"
            "given = sys.stdin.readline().strip()\n"
            f"own = tasks.echo(tasks.app.get_invocation(given)) if given else tasks.wait_for({str(gate)!r})\n"
            "tasks.app._cluster.sync()\n"
            "print(own.invocation_id, flush=True)\n"
            "print(own.result, flush=True)\n"
        )
        self.scripts: list[subprocess.Popen[str]] = []
        for _ in range(count):  # In the order of their numbers, which is not the one in which they call.
            self.scripts.append(talking_script(directory))
            assert self._line_of(self.scripts[-1]) == "connected"

    def call(self) -> str:
        """Have them call, the last one first; the invocation of the first one."""
        last = ""
        for script in reversed(self.scripts):
            assert script.stdin is not None
            script.stdin.write(f"{last}\n")
            script.stdin.flush()
            last = self._line_of(script)
        return last

    def signal(self, number: signal.Signals) -> None:
        for script in self.scripts:
            script.send_signal(number)

    def results(self) -> list[str]:
        return [self._line_of(script) for script in self.scripts]

    def end(self) -> None:
        for script in self.scripts:
            script.kill()
            script.communicate()

    def _line_of(self, script: subprocess.Popen[str]) -> str:
        assert script.stdout is not None
        return script.stdout.readline().strip()


def has_all_three(but: int) -> bool:
    """Whether a supervisor that is not this process has all three calls."""
    report = tasks.app.report()
    return report is not None and report["pid"] != but and report["unfinished"] == 3


@pytest.mark.parametrize("others", ["come later", "are dead"])
def test_what_a_call_takes_is_taken_up_before_it_whoever_had_made_it(others: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    tasks.add(1, 2).result  # noqa: B018  # The first client is here.
    chain = Chain(tmp_path, gate, 2)
    try:
        own = tasks.echo(tasks.app.get_invocation(chain.call()))
        ended: list[object] = []
        own.add_done_callback(ended.append)  # So this process sees at once that a supervisor is gone.
        tasks.app._cluster.sync()
        chain.signal(signal.SIGSTOP if others == "come later" else signal.SIGKILL)
        for _ in range(2):  # Another one is killed when it has just taken over.
            killed = supervisor()
            killed.kill()
            wait_until(lambda pid=killed.pid: has_all_three(pid) or bool(ended), "another one has the calls")  # type: ignore[misc]
        assert not ended
        gate.touch()
        assert own.get(timeout=30) == str(gate)
        if others == "come later":
            chain.signal(signal.SIGCONT)
            assert chain.results() == [str(gate)] * 2
    finally:
        gate.touch()
        chain.end()


def test_a_call_that_must_not_run_twice_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    invocation = tasks.hold_without_rerun(str(log), str(tmp_path / "never"))
    wait_until(log.exists, "it runs")
    tasks.app._cluster.sync()
    kill_supervisor()
    with pytest.raises(WorkerLostError, match="rerun_on_worker_loss"):
        invocation.result  # noqa: B018
    assert tasks.add(1, 2).result == 3
    assert log.read_text() == "ran\n"


def test_workers_of_the_dead_are_gone_before_their_calls_run_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    invocation = tasks.alone(str(log))
    wait_until(lambda: log.exists() and "begins" in log.read_text(), "it runs")
    kill_supervisor()
    assert invocation.result == "was alone"


def test_a_retried_call_keeps_its_count(tmp_path: Path) -> None:
    invocation = rules.fail_at_first(str(tmp_path / "log"), 2)
    assert invocation.result == 2
    waiting = rules.retry_much_later(str(tmp_path / "late"))
    wait_until(lambda: waiting.status is InvocationStatus.RETRY, "its first attempt is over")
    kill_supervisor()
    assert waiting.get(timeout=60) == 1


def test_a_supervisor_that_was_ended_on_purpose_is_not_replaced(tmp_path: Path) -> None:
    invocation = tasks.wait_for(str(tmp_path / "never"))
    tasks.app._cluster.sync()
    supervisor().send_signal(signal.SIGTERM)
    with pytest.raises(SupervisorLostError, match="it was ended"):
        invocation.result  # noqa: B018
    marker = os.environ["PYNENC_TEST_MARKER"]
    wait_until(lambda: not own_processes(marker), "nothing is started in its place")
