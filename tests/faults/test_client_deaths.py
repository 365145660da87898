"""Scripts and supervisors that die, and what becomes of the calls that they leave.

| who dies | what becomes of the calls |
| --- | --- |
| the script (SIGKILL) | as `on_client_loss` says: they are run, kept, or run by a supervisor that stays |
| the script and its supervisor (SIGKILL) | the next supervisor runs them, whoever starts it |
| the script by Ctrl-C, the supervisor by SIGTERM or `runner stop --now` | they are kept until somebody asks for them |

Who asks is `pynenc resume`, `app.resume()`, or a rerun that makes the same named group.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from pynenc import InvocationStatus
from pynenc.client import launch
from pynenc.exceptions import SupervisorLostError
from pynenc.protocol.run_file import Address
from tests import left, tasks
from tests.conftest import PROJECT, all_gone, is_alive, supervisor, talking_script, wait_until
from tests.left import lines_of

ENDS_S = 6.0
"""Two seconds on an idle machine."""

MARKS = 40


def start(directory: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    """Run a script that makes calls."""
    (directory / "script.py").write_text("import os, signal, sys\nfrom tests import left, tasks\n" + script)
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def left_alone() -> psutil.Process:
    """The supervisor, after this process has disconnected from it."""
    found = supervisor()
    tasks.close()
    return found


def resume(directory: Path, *arguments: str, stderr: int | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pynenc", "--app", "tests.tasks.app", "resume", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "80"}
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


def leave_marks(directory: Path, way: str) -> Path:
    """Let a script make calls and go, in some way, before they have run; the log of their marks."""
    log = directory / "log"
    script = (
        "held = tasks.begin_and_wait_for.parallelize([(f'begun{x}', 'gate') for x in range(2)])\n"
        f"marks = tasks.note.parallelize([({str(log)!r}, x) for x in range({MARKS})], name='marks')\n"
        "list(marks.results)"
    )
    process = start(directory, script)
    wait_until(lambda: len(list(directory.glob("begun*"))) == 2, "both workers are busy")
    # Not what the supervisor has in hand: what is not committed yet nobody was promised.
    wait_until(
        lambda: sum(one.calls for one in tasks.app.state_backend.counts_by_task()) == MARKS + 2, "all are accepted"
    )
    serving = left_alone()
    if way == "all are killed":
        process.kill()
        serving.kill()
    elif way == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    elif way == "the supervisor is terminated":
        serving.terminate()
    else:
        tasks.app.stop_supervisor(now=True)
    process.wait(30)
    wait_until(all_gone, "all have ended")
    (directory / "gate").touch()
    assert not lines_of(log)
    return log


WAYS = ["all are killed", "Ctrl-C", "the supervisor is terminated", "it is stopped at once"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_is_resumed_without_the_script(tmp_path: Path, way: str) -> None:
    log = leave_marks(tmp_path, way)
    assert tasks.app.state_backend.count_kept() == (0 if way == "all are killed" else MARKS + 2)
    resumed = tasks.app.resume()
    assert resumed.calls == MARKS + 2
    assert resumed.wait(30)
    succeeded = {one.task_id: one[1:] for one in resumed.counts}
    assert succeeded == {"tests.tasks.note": (MARKS, MARKS, 0), "tests.tasks.begin_and_wait_for": (2, 2, 0)}
    assert lines_of(log) == list(range(MARKS))


def test_what_is_resumed_is_counted_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor that is started to resume calls waits for that to be asked."""
    log = leave_marks(tmp_path, "all are killed")

    def find_or_start(*arguments: Any) -> tuple[socket.socket, Address]:
        found = start(*arguments)
        with pytest.raises(AssertionError, match="not within"):
            wait_until(lambda: bool(lines_of(log)), "calls run already", 0.5)
        return found

    start = launch.find_or_start
    monkeypatch.setattr(launch, "find_or_start", find_or_start)
    resumed = tasks.app.resume()
    assert resumed.calls == MARKS + 2
    assert resumed.wait(30)
    assert lines_of(log) == list(range(MARKS))


def test_the_command_that_resumes(tmp_path: Path) -> None:
    log = leave_marks(tmp_path, "Ctrl-C")
    resuming = resume(tmp_path)
    out, _ = resuming.communicate(timeout=40)
    assert resuming.returncode == 0
    assert [line.split("│")[2].strip() for line in out.splitlines() if "tests.tasks" in line] == ["2", str(MARKS)]
    assert lines_of(log) == list(range(MARKS))
    wait_until(all_gone, "all have ended", ENDS_S)
    again = resume(tmp_path)
    assert "nothing was left" in again.communicate(timeout=40)[0]
    assert again.returncode == 0


def test_what_a_killed_supervisor_left_is_run_by_the_next_one(tmp_path: Path) -> None:
    log = leave_marks(tmp_path, "all are killed")
    assert tasks.add(1, 2).result == 3
    tasks.close()
    wait_until(all_gone, "all is done", ENDS_S)
    assert lines_of(log) == list(range(MARKS))
    assert len(tasks.app.resume()) == 0
    assert lines_of(log) == list(range(MARKS))


def test_what_is_left_can_be_purged_and_does_not_run_for_that(tmp_path: Path) -> None:
    log = leave_marks(tmp_path, "all are killed")
    tasks.app.purge()
    assert tasks.app.state_backend.counts_by_task() == []
    assert tasks.add(1, 2).result == 3
    tasks.close()
    wait_until(all_gone, "all is done", ENDS_S)
    assert not lines_of(log)


def test_what_was_stopped_is_not_run_before_somebody_asks(tmp_path: Path) -> None:
    log = leave_marks(tmp_path, "Ctrl-C")
    assert tasks.add(1, 2).result == 3
    left_alone().kill()  # Not even when that one is killed.
    assert tasks.add(1, 3).result == 4
    tasks.close()
    wait_until(all_gone, "all is done", ENDS_S)
    assert not lines_of(log)
    assert tasks.app.state_backend.count_kept() == MARKS + 2
    tasks.app.purge()
    assert tasks.app.state_backend.count_kept() == 0


@pytest.mark.parametrize("way", ["all are killed", "Ctrl-C"])
def test_a_rerun_takes_the_calls_of_a_named_group_up_by_their_numbers(tmp_path: Path, way: str) -> None:
    log = leave_marks(tmp_path, way)
    group = tasks.note.parallelize([(str(log), x) for x in range(MARKS)], name="marks")
    assert list(group.results) == list(range(MARKS))
    assert lines_of(log) == list(range(MARKS))
    assert {one.invocation_id.split("-")[0] for one in group} == {"1"}, "they are those of the first script"
    resumed = tasks.app.resume()
    assert resumed.wait(30)
    assert lines_of(log) == list(range(MARKS))
    assert tasks.app.state_backend.count_kept() == 0


def test_scripts_that_resume_a_group_at_once_run_no_call_twice(tmp_path: Path) -> None:
    """Some of its calls were stopped, the others had not been made."""
    log = leave_marks(tmp_path, "Ctrl-C")
    script = (
        "sys.stdin.readline()\n"
        f"group = tasks.note.parallelize([({str(log)!r}, x) for x in range(300)], name='marks')\n"
        "print(list(group.results) == list(range(300)))"
    )
    (tmp_path / "script.py").write_text("import sys\nfrom tests import tasks\n" + script)
    processes = [talking_script(tmp_path) for _ in range(3)]
    resuming = resume(tmp_path)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=40)[0] for process in processes] == ["True\n"] * 3
    resuming.communicate(timeout=40)
    assert lines_of(log) == list(range(300))


def test_two_programs_that_resume_at_once_run_nothing_twice(tmp_path: Path) -> None:
    log = leave_marks(tmp_path, "Ctrl-C")
    both = [resume(tmp_path), resume(tmp_path)]
    for process in both:
        process.communicate(timeout=40)
    assert [process.returncode for process in both] == [0, 0]
    assert lines_of(log) == list(range(MARKS))


def test_what_had_not_begun_is_resumed_though_it_must_not_run_twice(tmp_path: Path) -> None:
    """A supervisor that stops knows which calls have begun; those fail, the others are kept."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    calls = left.note_once.parallelize([(str(log), x, str(gate)) for x in range(1, 9)])
    wait_until(lambda: len(lines_of(log)) == 2, "both workers are busy")
    tasks.app.stop_supervisor(now=True)
    with pytest.raises(SupervisorLostError, match="pynenc resume runs them"):
        calls[7].result  # noqa: B018
    wait_until(all_gone, "all have ended")
    gate.touch()
    begun = lines_of(log)
    resumed = tasks.app.resume()
    assert resumed.calls == 6
    assert resumed.wait(30)
    assert [tuple(one) for one in resumed.counts] == [("tests.left.note_once", 6, 6, 0)]
    assert lines_of(log) == list(range(1, 9))
    statuses = {x: tasks.app.get_invocation(calls[x - 1].invocation_id).status for x in range(1, 9)}
    assert {x for x, status in statuses.items() if status is InvocationStatus.FAILED} == set(begun)


def test_resume_tells_of_failures_and_goes_on_in_the_background(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    left.fail_for.parallelize([(x, gate) for x in range(10)])
    wait_until(Path(f"{gate}.begun").exists, "they run")
    tasks.app.stop_supervisor(now=True)
    wait_until(all_gone, "all have ended")
    out, _ = resume(tmp_path, "--no-wait").communicate(timeout=40)
    assert out == "app 'tests': 10 calls go on\n"
    waiting = resume(tmp_path, stderr=subprocess.PIPE)  # They are under way already.
    assert waiting.stderr is not None
    assert waiting.stderr.readline() == "waiting for 10 calls\n"
    Path(gate).touch()
    waiting.communicate(timeout=40)
    assert waiting.returncode == 1


def test_resuming_goes_on_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    log = leave_marks(tmp_path, "all are killed")
    for path in [tmp_path / "gate", *tmp_path.glob("begun*")]:
        path.unlink()
    resumed = tasks.app.resume()
    assert resumed.calls == MARKS + 2
    wait_until(lambda: len(list(tmp_path.glob("begun*"))) == 2, "both workers are busy")
    serving = supervisor()

    def replace() -> None:
        killed = [serving, *serving.children(recursive=True)]
        serving.kill()
        # A worker that outlives it for a moment must not see the gate open: what it ran then would run again.
        wait_until(lambda: not any(map(is_alive, killed)), "it is gone with its workers")
        (tmp_path / "gate").touch()

    replacing = threading.Timer(0.1, replace)
    replacing.start()
    assert resumed.wait(30)
    replacing.join()
    assert sum(one.succeeded for one in resumed.counts) == MARKS + 2
    assert lines_of(log) == list(range(MARKS))


def test_what_calls_had_made_is_made_anew_and_not_run_as_well(tmp_path: Path) -> None:
    """The call that made them is run again."""
    log, begun, gate = tmp_path / "log", tmp_path / "begun", tmp_path / "gate"
    script = (
        f"held = tasks.wait_for({str(gate)!r})\n"
        f"left.parent_of_notes({str(log)!r}, {str(begun)!r}, {str(gate)!r}, 30).result"
    )
    process = start(tmp_path, script)
    wait_until(begun.exists, "the call has made its calls")
    wait_until(lambda: (tasks.app.report() or {})["unfinished"] == 32, "they wait for a worker")
    serving = left_alone()
    process.kill()
    serving.kill()
    process.wait(30)
    wait_until(all_gone, "all have ended")
    gate.touch()
    resumed = tasks.app.resume()
    assert resumed.wait(30)
    assert lines_of(log) == list(range(30))
    counts = {one.task_id: one[1:] for one in tasks.app.state_backend.counts_by_task()}
    assert counts["tests.tasks.note"] == (60, 30, 30), "those of the first time have ended, too"


@pytest.mark.parametrize("value", ["DRAIN", "STOP", "STAY"])
def test_a_script_that_is_killed(tmp_path: Path, value: str) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    script = (
        f"held = tasks.begin_and_wait_for({str(tmp_path / 'begun')!r}, {str(gate)!r})\n"
        f"marks = [left.parent(f'begun{{x}}', {str(gate)!r}, {str(log)!r}, x) for x in range(20)]\n"
        "marks[19].result"
    )
    process = start(tmp_path, script, PYNENC__ON_CLIENT_LOSS=value)
    wait_until((tmp_path / "begun").exists, "it runs")
    wait_until(lambda: (tasks.app.report() or {}).get("unfinished", 0) >= 21, "all calls are there")
    tasks.close()
    process.kill()
    process.wait(30)
    if value == "STOP":
        wait_until(all_gone, "all have ended", ENDS_S)
        assert tasks.app.state_backend.count_kept() >= 21
        gate.touch()
        assert tasks.app.resume().wait(30)
    gate.touch()
    if value == "STAY":
        wait_until(lambda: len(lines_of(log)) == 20, "the work is done")
        assert tasks.app.report() is not None
        assert tasks.app.stop_supervisor()
    else:
        tasks.close()
    wait_until(all_gone, "all have ended", ENDS_S)
    assert lines_of(log) == list(range(20))
