"""What is kept, and for how long: by age, by size, and until somebody purges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pynenc.exceptions import InvocationNotFoundError, RunnerError
from tests import tasks
from tests.conftest import all_gone, own_processes, wait_until

MIB = 1 << 20


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tests.db"


def is_purged(invocation_id: str) -> bool:
    try:
        tasks.app.get_invocation(invocation_id)
    except InvocationNotFoundError:
        return True
    return False


def test_calls_older_than_the_retention_are_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__CONFIGSTATEBACKEND__RETENTION", "0.5s")
    invocation = tasks.add(1, 2)
    assert invocation.result == 3
    wait_until(lambda: is_purged(invocation.invocation_id), "it is purged")
    with pytest.raises(InvocationNotFoundError, match="it may have been purged"):
        tasks.app.get_invocation(invocation.invocation_id)
    assert invocation.result == 3
    assert tasks.app.state_backend.counts_by_task() == []


def test_a_result_that_a_waiting_call_takes_is_kept_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYNENC__CONFIGSTATEBACKEND__RETENTION", "0.5s")
    gate = tmp_path / "gate"
    taken, other = tasks.echo("taken"), tasks.echo("other")
    assert (taken.result, other.result) == ("taken", "other")
    waiting = tasks.echo([taken, tasks.wait_for(str(gate))])
    wait_until(lambda: is_purged(other.invocation_id), "the other one is purged")
    gate.touch()
    assert waiting.result == ["taken", str(gate)]
    wait_until(lambda: is_purged(taken.invocation_id), "it is purged when it is not needed any more")


def test_the_database_stays_within_its_size_while_results_come(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.setenv("PYNENC__CONFIGSTATEBACKEND__MAX_STATE_SIZE", "4MiB")
    first = tasks.echo(b"first")
    assert first.result == b"first"
    values = [os.urandom(20_000) for _ in range(600)]  # 12 MB, and each is kept as an argument and as a result.
    assert list(tasks.echo.parallelize([(value,) for value in values]).results) == values
    wait_until(lambda: is_purged(first.invocation_id), "the first is purged")
    log = database.with_name("tests.db-wal")
    wait_until(lambda: database.stat().st_size + log.stat().st_size <= 4 * MIB, "it has got small", 40)
    last = tasks.echo(b"last")
    assert last.result == b"last"
    tasks.close()
    wait_until(all_gone, "the supervisor has ended")
    assert database.stat().st_size <= 4 * MIB
    assert tasks.app.get_invocation(last.invocation_id).result == b"last"


def test_short_scripts_leave_no_more_than_the_size_either(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.setenv("PYNENC__CONFIGSTATEBACKEND__MAX_STATE_SIZE", "2MiB")
    for _ in range(4):
        assert len(tasks.echo(os.urandom(600_000)).result) == 600_000
        tasks.close()
        wait_until(all_gone, "the supervisor has ended")
    assert database.stat().st_size <= 2 * MIB


def test_a_purge_forgets_all_that_nobody_runs_and_the_file_gets_small(database: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from tests import tasks\n"
        f"never = tasks.wait_for.parallelize([({str(tmp_path / 'never')!r},)] * 600)\n"
        "tasks.app._cluster.sync()\n"
        "os.kill(tasks.app.report()['pid'], signal.SIGTERM)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=40)
    marker = os.environ["PYNENC_TEST_MARKER"]
    wait_until(lambda: not own_processes(marker), "the supervisor has kept its calls and ended")
    value = os.urandom(100_000)
    assert list(tasks.echo.parallelize([(value,)] * 50).results) == [value] * 50
    gate = tmp_path / "gate"
    running = tasks.wait_for(str(gate))
    with pytest.raises(RunnerError, match="nothing was purged: calls are still running"):
        tasks.app.purge()
    gate.touch()
    assert running.result == str(gate)
    unfinished = [one for one in tasks.app.state_backend.counts_by_task() if one.calls > one.succeeded + one.failed]
    assert [(one.task_id, one.calls - one.succeeded) for one in unfinished] == [("tests.tasks.wait_for", 600)]
    assert database.stat().st_size + database.with_name("tests.db-wal").stat().st_size > 5_000_000
    tasks.app.purge()
    assert database.stat().st_size < 200_000
    assert tasks.app.state_backend.counts_by_task() == []
    assert is_purged(running.invocation_id)
    assert tasks.add(1, 2).result == 3
