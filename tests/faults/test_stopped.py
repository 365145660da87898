"""Processes that are stopped (SIGSTOP) for a while: the others go on, memory stays bounded, and all comes right after SIGCONT.

| who | meanwhile | after SIGCONT |
| --- | --- | --- |
| a client with results to come | others go on; what it does not read waits in the database | it gets them all, in order |
| the supervisor | clients wait without using the processor | all results |
| a worker, in a call with `timeout` | it is killed when the time is over: `TaskTimeoutError` | |
| a worker, in a call without | others take over what it had not begun | its call goes on |
| a worker between two calls | others take over all it holds | it goes on |
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pynenc import InvocationStatus
from pynenc.exceptions import TaskTimeoutError
from tests import rules, tasks
from tests.conftest import PROJECT, wait_until

SECONDS = [
    pytest.param(1.0, id="shortly"),
    pytest.param(30.0, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(180)]),
]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes for as long as this lasts."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(
            lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids), "they are stopped"
        )
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def report() -> dict:  # type: ignore[type-arg]
    found = tasks.app.report()
    assert found is not None
    return found


def calls_go_on_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert tasks.add(1, 2).get(30) == 3
        assert list(tasks.add.parallelize([(x, 1) for x in range(200)]).results) == list(range(1, 201))


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_stopped_client_with_results_to_come_holds_nobody_up(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNENC__CLIENT_BUFFER_BYTES", str(1 << 20))
    script = (
        "import sys\nfrom tests import tasks\nfrom tests.rules import inflate\n"
        "tasks.use_fresh_configuration()\n"
        "group = inflate.parallelize([(x, 1000) for x in range(100_000)])\n"
        "tasks.app._cluster.sync()\nprint('sent', flush=True)\nsys.stdin.read(1)\n"
        "for x, result in enumerate(group.results):\n    assert result == f'{x:01000d}', x\n"
        "print('right')\n"
    )
    assert tasks.add(1, 2).result == 3
    supervisor = psutil.Process(report()["pid"])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, text=True, **pipes) as client:  # type: ignore[call-overload]
        assert client.stdout.readline() == "sent\n"
        with stopped(client.pid):
            before = supervisor.memory_info().rss
            calls_go_on_for(seconds)
            wait_until(lambda: report()["unfinished"] == 0, "its calls have run", 120)
            grown = supervisor.memory_info().rss - before
            assert grown < 60 << 20, f"a hundred million bytes of results wait, and {grown:,} of them in memory"
        out, _ = client.communicate("\n", timeout=120)
        assert (client.returncode, out) == (0, "right\n")


@pytest.mark.parametrize("seconds", SECONDS)
def test_clients_of_a_stopped_supervisor_wait_and_do_not_spin(seconds: float) -> None:
    group = tasks.sleep_for.parallelize([(0.001, x) for x in range(300)])
    tasks.app._cluster.sync()
    with stopped(report()["pid"]):
        used = time.process_time()
        late = [tasks.add(x, 1) for x in range(50)]
        assert not late[-1].wait(seconds)
        assert time.process_time() - used < 0.3 * seconds
    assert [one.get(60) for one in late] == list(range(1, 51))
    assert list(group.results) == list(range(300))


def test_a_supervisor_that_is_stopped_for_longer_than_a_time_limit_ends_no_call_that_was_in_time() -> None:
    quick = rules.in_a_second(0.5)
    wait_until(lambda: any(worker["running"] for worker in report()["workers"]), "it runs")
    with stopped(report()["pid"]):
        time.sleep(1.5)  # The call ends meanwhile, in time; the supervisor hears of it later.
    assert quick.get(30) == 0.5


def running_worker(task: str) -> int:
    """The pid of the worker that runs a task."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [one["pid"] for one in report()["workers"] if one["running"] == task]
        return bool(found)

    wait_until(is_there, f"{task} runs")
    return found[0]


def test_a_stopped_worker_is_killed_when_the_time_of_its_call_is_over(tmp_path: Path) -> None:
    assert tasks.add(1, 2).result == 3
    invocation = rules.hold.with_options(timeout=1.0)(str(tmp_path / "at"), str(tmp_path / "never"))
    wait_until((tmp_path / "at").exists, "it has begun")
    worker = running_worker(rules.hold.task_id)
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(TaskTimeoutError, match="longer than option timeout"):
        invocation.get(30)
    wait_until(lambda: not psutil.pid_exists(worker), "it is gone")
    assert list(tasks.add.parallelize([(x, 1) for x in range(100)]).results) == list(range(1, 101))


@pytest.mark.parametrize("seconds", SECONDS)
def test_others_take_over_what_a_stopped_worker_has_not_begun(seconds: float, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    assert list(tasks.add.parallelize([(x, 1) for x in range(400)]).results)  # So that leases hold several calls.
    held = tasks.wait_for(str(gate))
    behind = tasks.add.parallelize([(x, 1) for x in range(300)])
    with stopped(running_worker(tasks.wait_for.task_id)):
        gate.touch()
        assert list(behind.results) == list(range(1, 301))
        calls_go_on_for(seconds)
        assert held.status is InvocationStatus.RUNNING
    assert held.get(30) == str(gate)


def test_others_take_over_all_from_a_worker_that_is_stopped_between_calls() -> None:
    assert list(tasks.add.parallelize([(x, 1) for x in range(1000)]).results) == list(range(1, 1001))
    wait_until(lambda: len(report()["workers"]) == 2, "both workers are there")
    workers = [worker["pid"] for worker in report()["workers"]]
    for worker in workers:
        with stopped(worker):
            assert [tasks.add(x, 1).get(20) for x in range(5)] == list(range(1, 6))
            slow = tasks.sleep_for.parallelize([(0.01, x) for x in range(40)])
            assert list(slow.results) == list(range(40))
    assert list(tasks.add.parallelize([(x, 1) for x in range(1000)]).results) == list(range(1, 1001))
    assert [worker["pid"] for worker in report()["workers"]] == workers


def test_a_stopped_fork_server_delays_nothing_but_new_workers() -> None:
    assert tasks.add(1, 2).result == 3
    supervisor = psutil.Process(report()["pid"])
    (server,) = supervisor.children()
    with stopped(server.pid):
        calls_go_on_for(0.3)
        victim = report()["workers"][0]["pid"]
        os.kill(victim, signal.SIGKILL)
        assert [tasks.add(x, 1).get(20) for x in range(20)] == list(range(1, 21))
    wait_until(lambda: victim not in [one["pid"] for one in report()["workers"]], "it was replaced")
    assert list(tasks.add.parallelize([(x, 1) for x in range(500)]).results) == list(range(1, 501))
