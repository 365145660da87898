"""Workers that die: who is blamed, what is rerun, what the user sees.

| what happens | the call that ran | the others of its lease |
| --- | --- | --- |
| SIGKILL, SIGSEGV, os._exit, once | is rerun | are run |
| the same, each time | fails with WorkerLostError after its last rerun | are run |
| rerun_on_worker_loss=False | fails at once | are run |
| the fork server is killed | is rerun | are run |
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from pynenc import WorkerLostError
from tests import tasks
from tests.conftest import own_processes, wait_until


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_call_that_kills_every_worker_fails_with_the_signal_by_name(number: signal.Signals) -> None:
    with pytest.raises(WorkerLostError) as raised:
        tasks.die(number).result  # noqa: B018
    text = str(raised.value)
    assert number.name in text
    assert "tests.tasks.die" in text
    assert "loss 2" in text
    assert tasks.add(1, 2).result == 3


def test_a_worker_that_exits_is_told_with_its_code() -> None:
    error = tasks.exit_hard(7).exception
    assert isinstance(error, WorkerLostError)
    assert "exited with code 7" in str(error)


def test_a_call_whose_worker_died_once_is_rerun(tmp_path: Path) -> None:
    assert tasks.die_once(str(tmp_path / "died")).result == "survived"


def test_a_call_that_may_not_be_rerun_fails_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    error = tasks.die_without_rerun(str(path)).exception
    assert isinstance(error, WorkerLostError)
    assert "rerun_on_worker_loss=False" in str(error)
    assert path.read_text() == "ran\n"


def test_a_poisonous_call_does_not_stop_the_rest_of_its_batch(tmp_path: Path) -> None:
    log = tmp_path / "log"
    calls = [(str(log), number) for number in range(200)]
    before = tasks.note.parallelize(calls)
    poison = [tasks.die() for _ in range(3)]
    after = tasks.note.parallelize(calls)
    assert all(isinstance(one.exception, WorkerLostError) for one in poison)
    assert list(before.results) == list(after.results) == list(range(200))


@pytest.mark.parametrize("fatal", [0, 7_777, 19_999])
def test_one_of_many_calls_that_take_no_time_is_blamed_alone(fatal: int) -> None:
    outcomes = list(tasks.die_at.parallelize(zip(range(20_000), [fatal] * 20_000, strict=True)).outcomes)
    assert [at for at, outcome in enumerate(outcomes) if not outcome.ok] == [fatal]
    assert isinstance(outcomes[fatal].exception, WorkerLostError)
    assert all(outcome.result == at for at, outcome in enumerate(outcomes) if at != fatal)


def test_workers_killed_from_outside_lose_no_call(tmp_path: Path) -> None:
    """Kill the workers again and again while groups run: each call has one result, and it is right."""
    groups, kills = [], 0
    while kills < 5:  # A machine with much else to do may look only now and then.
        groups.append(tasks.burn.parallelize([(0.002,)] * 400))
        for _ in groups[-1].as_completed():
            if kills < 5:
                report = tasks.app.report()
                assert report is not None
                victims = [worker["pid"] for worker in report["workers"] if worker["running"]]
                for victim in victims[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        kills += 1
    outcomes = [outcome for group in groups for outcome in group.outcomes]
    failures = [outcome for outcome in outcomes if not outcome.ok]
    assert [outcome.result for outcome in outcomes if outcome.ok] == [0.002] * (len(outcomes) - len(failures))
    assert len(outcomes) == 400 * len(groups)
    assert all(isinstance(outcome.exception, WorkerLostError) for outcome in failures)
    # A call fails only when it was hit twice.
    assert len(failures) <= 2


def test_a_killed_fork_server_is_replaced_with_its_workers() -> None:
    assert tasks.add(1, 1).result == 2
    for round_number in range(2):  # The first was forked from the supervisor, the second was not.
        report = tasks.app.report()
        assert report is not None
        workers = [psutil.Process(worker["pid"]) for worker in report["workers"]]
        psutil.Process(report["fork_server"]).kill()
        wait_until(lambda: not any(worker.is_running() for worker in workers), "its workers are gone")  # noqa: B023
        assert tasks.add(2, round_number).result == 2 + round_number


def test_a_killed_supervisor_takes_its_workers_along(tmp_path: Path) -> None:
    invocation = tasks.wait_for(str(tmp_path / "gate"))
    tasks.app._cluster.sync()
    marker = os.environ["PYNENC_TEST_MARKER"]
    report = tasks.app.report()
    assert report is not None
    psutil.Process(report["pid"]).kill()
    wait_until(lambda: not own_processes(marker), "all processes have ended")
    assert not invocation.status.is_final
    (tmp_path / "gate").touch()
    assert tasks.add(1, 2).result == 3  # A new supervisor starts, and takes away what the dead one left.
    assert invocation.result == str(tmp_path / "gate")


def test_a_worker_that_closes_its_connection_is_replaced() -> None:
    def close_everything() -> None:
        os.closerange(3, 100)

    assert isinstance(tasks.apply(lambda _: close_everything(), 0).exception, WorkerLostError)
    assert tasks.add(1, 2).result == 3


def test_a_long_call_does_not_keep_earlier_results_waiting(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    assert list(tasks.wait_for.parallelize([(str(gate),)] * 50).results)  # So that leases hold several calls.
    calls = [(str(gate),)] * 6 + [(str(tmp_path / "later"),)] * 2
    group = tasks.wait_for.parallelize(calls)
    results = group.results
    assert [next(results) for _ in range(6)] == [str(gate)] * 6
    (tmp_path / "later").touch()
    assert len(list(results)) == 2


def test_calls_queued_behind_a_long_one_are_taken_over_by_an_idle_worker(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    quick = tmp_path / "quick"
    quick.touch()
    assert list(tasks.wait_for.parallelize([(str(quick),)] * 400).results)
    # The first call blocks one worker with calls behind it in its hands.
    group = tasks.wait_for.parallelize([(str(gate),), *[(str(quick),)] * 40])
    done = [invocation for invocation, _ in zip(group.as_completed(), range(39), strict=False)]
    assert len(done) == 39
    assert not group[0].wait(0)
    gate.touch()
    assert group.wait()
