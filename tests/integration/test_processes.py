"""Supervisor and workers as real processes: how they start, share, end, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pynenc import InvocationNotFoundError, InvocationStatus, RunnerError
from pynenc.client import launch
from tests import tasks
from tests.conftest import PROJECT, Finished, all_gone, configure, own_processes, talking_script, wait_until

TASKS = """
import os, sys, time
from pynenc import Pynenc
app = Pynenc()

@app.task
def add(x, y):
    return x + y

@app.task
def speak(text):
    print(text)
    print(text, file=sys.stderr)

@app.task
def pid():
    return os.getpid(), os.getppid()
"""

RunPython = Callable[..., Finished]


def test_both_workers_run_at_the_same_time(tmp_path: Path) -> None:
    pids = set(tasks.crowd.parallelize([(str(tmp_path),)] * 2).results)
    assert len(pids) == 2


def test_workers_import_with_the_path_and_directory_of_the_client() -> None:
    directory, path = tasks.working_place().result
    assert directory == os.getcwd()
    assert [entry or os.getcwd() for entry in sys.path] == path


def test_numeric_libraries_are_capped_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    assert tasks.environment("OMP_NUM_THREADS").result == "1"
    assert tasks.environment("MKL_NUM_THREADS").result == "7"


def test_what_a_worker_prints_reaches_the_terminal(run_python: RunPython) -> None:
    script = "from tasks import speak\nspeak('hello').result\n"
    finished = run_python({"tasks.py": TASKS, "script.py": script}, "script.py")
    assert finished == (0, "hello\n", "hello\n")


def test_calls_that_nobody_waits_for_are_run_when_the_script_ends(run_python: RunPython, tmp_path: Path) -> None:
    script = """
from tests.tasks import note
import sys
for number in range(300):
    note(sys.argv[1], number)
"""
    marks = tmp_path / "marks"
    finished = run_python({"script.py": script}, "script.py", str(marks), PYTHONPATH=str(PROJECT))
    assert finished.code == 0, finished.err
    wait_until(all_gone, "the supervisor has drained")
    assert sorted(map(int, marks.read_text().split())) == list(range(300))


def test_an_invocation_is_found_by_its_id_from_another_process_and_later(run_python: RunPython) -> None:
    make = "from tasks import add\ni = add(2, 3)\ni.result\nprint(i.invocation_id)\n"
    made = run_python({"tasks.py": TASKS, "make.py": make}, "make.py")
    look = """
import sys, tasks
i = tasks.app.get_invocation(sys.argv[1])
print(i.status, i.result, i.arguments, i.task)
"""
    found = run_python({"look.py": look}, "look.py", made.out.strip())
    assert (found.code, found.out) == (0, "SUCCESS 5 Arguments(x=2, y=3) Task(func=add)\n"), found.err


def test_a_task_with_another_name_in_its_module_is_found_where_only_the_id_of_its_app_is_known(
    run_python: RunPython,
) -> None:
    names = f"{TASKS}\ndef _hidden(x): return 2 * x\npublic = app.task(_hidden)\n"
    make = "from tasks import public\ni = public(2)\ni.result\nprint(i.invocation_id)\n"
    made = run_python({"tasks.py": names, "make.py": make}, "make.py")
    look = """
import sys, pynenc
i = pynenc.Pynenc().get_invocation(sys.argv[1])
print(i.result, i.task)
"""
    found = run_python({"look.py": look}, "look.py", made.out.strip())
    assert (found.code, found.out) == (0, "4 Task(func=_hidden)\n"), found.err


def test_an_invocation_that_still_runs_can_be_waited_for_by_another_process(
    run_python: RunPython, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    invocation = tasks.wait_for(str(gate))
    tasks.app._cluster.sync()
    look = """
import sys, pathlib
from tests import tasks
i = tasks.app.get_invocation(sys.argv[1])
print(i.status.is_final)
pathlib.Path(sys.argv[2]).touch()
print(i.result == sys.argv[2])
"""
    found = run_python({"look.py": look}, "look.py", invocation.invocation_id, str(gate), PYTHONPATH=str(PROJECT))
    assert (found.code, found.out) == (0, "False\nTrue\n"), found.err
    assert invocation.result == str(gate)


def test_an_unknown_invocation_is_told_of() -> None:
    tasks.add(1).result  # noqa: B018
    for unknown in ("9-9-9", "nonsense", "1-0-5", ""):
        with pytest.raises(InvocationNotFoundError):
            tasks.app.get_invocation(unknown)


def test_statuses_on_the_way(tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    blocked = [tasks.begin_and_wait_for(str(begun), str(gate)), tasks.wait_for(str(gate))]
    waiting = [tasks.wait_for(str(gate)) for _ in range(3)]
    assert not waiting[2].wait(0)
    wait_until(begun.exists, "the first call runs")
    assert blocked[0].status is InvocationStatus.RUNNING
    assert waiting[2].status in (InvocationStatus.REGISTERED, InvocationStatus.PENDING)
    with pytest.raises(TimeoutError):
        blocked[0].get(timeout=0.01)
    gate.touch()
    assert blocked[0].result == str(gate)
    assert waiting[2].result == str(gate)


def test_counts_of_a_group_on_the_way(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    group = tasks.wait_for.parallelize([(str(gate),)] * 6)
    counts = group.counts
    assert sum(counts.values()) == 6
    assert InvocationStatus.SUCCESS not in counts
    assert not group.wait(timeout=0.01)
    gate.touch()
    assert group.wait()
    assert group.counts == {InvocationStatus.SUCCESS: 6}


def test_closing_and_calling_again_connects_again() -> None:
    first = tasks.add(1, 2)
    tasks.app.close()
    assert tasks.add(2, 2).result == 4
    tasks.app.close()
    assert tasks.app.get_invocation(first.invocation_id).result == 3


def test_an_idle_client_and_its_cluster_use_no_cpu() -> None:
    marker = os.environ["PYNENC_TEST_MARKER"]
    assert tasks.add(1, 2).result == 3
    wait_until(lambda: len(own_processes(marker)) == 4, "supervisor, fork server and two workers are there")
    processes = own_processes(marker)

    def is_idle_for_a_while() -> bool:
        before = [process.cpu_times()[:2] for process in processes]
        threading.Event().wait(0.5)  # The time over which the cluster is watched, not a wait for something.
        return [process.cpu_times()[:2] for process in processes] == before

    # Not at once: on a busy machine the second worker still begins, and what is done once a second counts as a hundredth.
    wait_until(is_idle_for_a_while, "they use no processor time")


def test_purge_forgets_everything_but_not_what_runs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = tasks.wait_for(str(gate))
    tasks.app._cluster.sync()
    with pytest.raises(RunnerError, match="still running"):
        tasks.app.purge()
    gate.touch()
    assert running.result == str(gate)
    tasks.app.purge()
    with pytest.raises(InvocationNotFoundError):
        tasks.app.get_invocation(running.invocation_id)
    assert tasks.add(1).result == 1


def test_a_supervisor_that_comes_to_nothing_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = tasks.wait_for(str(tmp_path / "gate"))
    tasks.app._cluster.sync()
    report = tasks.app.report()
    assert report is not None

    def fail(*_: object) -> None:
        raise RunnerError("no supervisor can be started")

    with monkeypatch.context() as patch:
        patch.setattr(launch, "find_or_start", fail)
        psutil.Process(report["pid"]).send_signal(signal.SIGKILL)
        with pytest.raises(RunnerError, match="no supervisor can be started"):
            lost.result  # noqa: B018
        with pytest.raises(RunnerError):
            lost.result  # noqa: B018
    assert tasks.add(1, 2).result == 3
    (tmp_path / "gate").touch()  # The next supervisor has taken up what that one had left.
    assert tasks.app.get_invocation(lost.invocation_id).result == str(tmp_path / "gate")


def test_a_client_that_does_not_read_holds_nobody_up_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__CLIENT_BUFFER_BYTES", "8192")
    invocations = [tasks.echo("x" * 20_000) for _ in range(100)]
    group = tasks.fail_odd.parallelize([(x,) for x in range(2000)])
    tasks.app._cluster.sync()
    assert all(len(invocation.result) == 20_000 for invocation in invocations)
    assert [outcome.ok for outcome in group.outcomes] == [x % 2 == 0 for x in range(2000)]


def test_queued_arguments_beyond_the_budget_are_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYNENC__MEMORY_BYTES", "10000")
    gate = tmp_path / "gate"
    blocked = tasks.wait_for.parallelize([(str(gate),)] * 2)
    group = tasks.echo.parallelize([("y" * 3000 + str(x),) for x in range(300)])
    gate.touch()
    assert list(group.results) == ["y" * 3000 + str(x) for x in range(300)]
    assert blocked.wait()


def test_a_state_directory_that_cannot_be_used_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    configure(monkeypatch, STATE_DIR=blocker / "state")
    with pytest.raises(RunnerError, match="state directory"):
        tasks.add(1)


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    state = tmp_path / "state"
    state.mkdir()
    with sqlite3.connect(state / "tests.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RunnerError, match="schema version 99"):
        tasks.add(1)


def test_another_program_gets_all_of_the_outcomes_that_come_together(tmp_path: Path) -> None:
    """The last results of a batch and its last failures come at the same moment, to everybody who waits."""
    gate = tmp_path / "gate"
    held = tasks.begin_and_wait_for.parallelize([(str(tmp_path / f"begun{i}"), str(gate)) for i in range(2)])
    for i in range(2):
        wait_until((tmp_path / f"begun{i}").exists, "both workers are busy")
    group = tasks.fail_odd.parallelize([(x,) for x in range(40)])
    program = (
        "import sys\nfrom tests import tasks\n"
        "calls = [tasks.app.get_invocation(one) for one in sys.argv[1:]]\n"
        "print('attached', flush=True)\n"
        "print(sum(one.exception is not None for one in calls))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *(one.invocation_id for one in group)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYNENC__APP_ID": "tests"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "attached\n"
    gate.touch()
    assert process.communicate(timeout=30)[0] == "20\n"
    assert all(held.results)


def test_a_script_ends_while_a_done_callback_waits(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from tests.tasks import begin_and_wait_for\n"
        "begin_and_wait_for('begun', 'go').add_done_callback(lambda done: print('too late'))\n"
    )
    with talking_script(tmp_path) as script:
        try:
            assert script.wait(40) == 0  # As in `run_python`: it bounds a failure.
        finally:
            (tmp_path / "go").touch()
            script.kill()
        assert script.communicate()[0] == ""
