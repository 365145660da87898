"""Whether, when, how often and in which order calls run, with real workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pynenc import InvocationStatus, RetryError
from pynenc.exceptions import InvocationCancelledError, InvocationExpiredError, TaskTimeoutError
from tests import rules, tasks
from tests.conftest import Finished, Lateness, configure, wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

Run = Callable[..., Finished]


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_a_call_is_tried_again_until_it_succeeds(tmp_path: Path) -> None:
    invocation = rules.fail_at_first(str(tmp_path / "log"), 2)
    assert invocation.result == 2  # What `num_retries` said inside.
    assert invocation.num_retries == 2
    statuses = [change.status for change in invocation.history]
    assert statuses == ["REGISTERED", "RUNNING", "RETRY", "RUNNING", "RETRY", "RUNNING", "SUCCESS"]
    times = [change.time for change in invocation.history]
    assert times == sorted(times)
    assert all("not yet" in change.traceback for change in invocation.history if change.status == "RETRY")


def test_when_retries_are_used_up_the_last_exception_is_raised(tmp_path: Path) -> None:
    invocation = rules.fail_at_first(str(tmp_path / "log"), 9)
    with pytest.raises(ConnectionError, match="not yet: 3"):
        invocation.result  # noqa: B018
    assert invocation.status is InvocationStatus.FAILED
    assert len(lines(tmp_path / "log")) == 4
    assert [c.traceback.count("not yet") > 0 for c in invocation.history if c.traceback] == [True] * 4


def test_an_exception_that_is_not_named_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never"):
        rules.fail_for_good(str(tmp_path / "log")).result  # noqa: B018
    assert len(lines(tmp_path / "log")) == 1


def test_a_task_asks_for_another_attempt_itself_and_says_when(tmp_path: Path) -> None:
    invocation = rules.ask_again(str(tmp_path / "log"), 0.2)
    assert invocation.result == 1
    _, _, asked, again, _ = (change.time for change in invocation.history)
    assert 0.2 <= again - asked < 5
    with pytest.raises(ValueError, match="at least 0"):
        RetryError(delay=-1)


def test_calls_of_a_batch_are_tried_again_one_by_one(tmp_path: Path) -> None:
    group = rules.fail_if_odd.parallelize([(str(tmp_path), x) for x in range(50)])
    assert list(group.results) == list(range(50))
    assert group.counts == {InvocationStatus.SUCCESS: 50}
    assert [one.num_retries for one in group] == [x % 2 for x in range(50)]


def test_a_waiting_retry_occupies_no_worker(tmp_path: Path) -> None:
    waiting = rules.ask_again.parallelize([(str(tmp_path / f"log{i}"), 2.0) for i in range(8)])
    # There are two workers.
    wait_until(lambda: {one.status for one in waiting} == {InvocationStatus.RETRY}, "all wait for their next attempt")
    assert tasks.add(1, 2).result == 3
    assert list(waiting.results) == [1] * 8


@pytest.mark.parametrize("how", ["sleep", "deaf", "c_code"])
def test_a_call_that_runs_too_long_is_ended_in_time(how: str, lateness: Lateness) -> None:
    invocation = rules.run_long(how)
    with pytest.raises(TaskTimeoutError, match="option timeout of task"):
        invocation.result  # noqa: B018
    heard = time.time()
    # From when it began: how long the cluster takes to start is not the subject.
    began, ended = (change.time for change in invocation.history[1:])
    assert 0.3 <= ended - began < 0.3 + 0.25 + lateness.of_all_s
    assert heard - ended < 0.25 + lateness.of_all_s
    assert tasks.add(1, 2).result == 3


def test_a_time_limit_hits_no_other_call() -> None:
    group = rules.run_for.parallelize([(0.01,)] * 20 + [(5.0,)] + [(0.01,)] * 20)
    outcomes = list(group.outcomes)
    assert [type(one.exception) for one in outcomes if not one.ok] == [TaskTimeoutError]
    assert [one.ok for one in outcomes].index(False) == 20


def test_a_timeout_can_be_tried_again(tmp_path: Path) -> None:
    # On a machine with much else to do a quick attempt may be over too late as well.
    assert rules.slow_at_first(str(tmp_path / "log")).result >= 1


SLOW_MODULES = {
    "quick.py": """
import pynenc.worker.main
from pynenc import Pynenc

app = Pynenc()

@app.task
def hurry(seconds):
    pynenc.worker.main.IMPORT_S = seconds
""",
    "slow.py": """
import time
from pynenc import context
from quick import app

if context.worker_of is not None:
    time.sleep(1.5)

@app.task(timeout=0.5)
def one():
    return 1
""",
    "script.py": """
import sys
from quick import hurry
from slow import one

if sys.argv[1:]:
    hurry(float(sys.argv[1])).result
invocation = one()
print(type(invocation.exception).__name__, invocation.exception or invocation.result)
""",
}


def test_the_import_of_its_module_is_not_a_calls_time(run_python: Run) -> None:
    assert run_python(SLOW_MODULES, "script.py") == (0, "NoneType 1\n", "")


def test_an_import_that_hangs_is_ended_by_the_calls_time_limit(run_python: Run) -> None:
    finished = run_python(SLOW_MODULES, "script.py", "0.2", PYNENC__NUM_WORKERS="1")
    assert (finished.code, finished.err) == (0, "")
    assert "TaskTimeoutError" in finished.out
    assert "option timeout of task slow.one" in finished.out


def test_a_cancelled_call_never_runs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = [tasks.wait_for(str(gate)) for _ in range(2)]
    group = rules.note.parallelize([(str(tmp_path / "log"), x) for x in range(2_000)])
    single = rules.note(str(tmp_path / "log"), 5_000)
    group.cancel()
    single.cancel()
    with pytest.raises(InvocationCancelledError, match="before it began"):
        single.get(timeout=30)
    assert single.status is InvocationStatus.CANCELLED
    assert group.wait(timeout=30)
    assert group.counts == {InvocationStatus.CANCELLED: 2_000}
    gate.touch()
    assert [one.result for one in held] == [str(gate)] * 2
    assert lines(tmp_path / "log") == []
    assert single.history[-1].status is InvocationStatus.CANCELLED
    tasks.app.close()
    assert tasks.app.get_invocation(single.invocation_id).status is InvocationStatus.CANCELLED


def test_a_call_in_a_workers_hands_is_cancelled_too(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    rules.hold(str(tmp_path / "warm"), str(tmp_path)).result  # noqa: B018
    group = rules.hold.parallelize([(str(tmp_path / f"at{i}"), str(gate)) for i in range(6)])
    wait_until(lambda: sum((tmp_path / f"at{i}").exists() for i in range(6)) == 2, "two calls run")
    group.cancel()
    gate.touch()
    assert group.wait(timeout=30)
    assert group.counts == {InvocationStatus.SUCCESS: 2, InvocationStatus.CANCELLED: 4}
    assert sum((tmp_path / f"at{i}").exists() for i in range(6)) == 2


def test_cancelling_what_runs_takes_force(tmp_path: Path) -> None:
    invocation = rules.hold(str(tmp_path / "at"), str(tmp_path / "never"))
    wait_until((tmp_path / "at").exists, "the call runs")
    invocation.cancel()
    assert invocation.status is InvocationStatus.RUNNING
    invocation.cancel(force=True)
    with pytest.raises(InvocationCancelledError, match="with force"):
        invocation.get(timeout=30)
    assert invocation.status is InvocationStatus.KILLED
    assert tasks.add(2, 2).result == 4
    invocation.cancel(force=True)  # It has ended: nothing happens.


def test_cancelling_while_a_retry_waits(tmp_path: Path) -> None:
    invocation = rules.ask_again(str(tmp_path / "log"), 60.0)
    wait_until(lambda: invocation.status is InvocationStatus.RETRY, "it waits for its next attempt")
    invocation.cancel()
    with pytest.raises(InvocationCancelledError):
        invocation.get(timeout=30)


def test_a_call_that_does_not_begin_in_time_expires(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = [tasks.wait_for(str(gate)) for _ in range(4)]
    late = rules.expiring(str(tmp_path / "log"))
    with pytest.raises(InvocationExpiredError, match="option expires"):
        late.get(timeout=30)
    gate.touch()
    assert [one.result for one in held]
    assert lines(tmp_path / "log") == []
    assert rules.expiring.with_options(expires=60)(str(tmp_path / "log")).result == "in time"


def test_a_higher_priority_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=1)
    gate, log = tmp_path / "gate", str(tmp_path / "log")
    held = [tasks.wait_for(str(gate)) for _ in range(2)]
    # Only then has the worker no room for one of those that follow before all of them are there.
    wait_until(lambda: held[1].status is InvocationStatus.PENDING, "both are in the worker's hands")
    low = [rules.note(log, x) for x in range(3)]
    high = [rules.note.with_options(priority=5)(log, x) for x in range(10, 13)]
    group = rules.note.with_options(priority=9).parallelize([(log, x) for x in range(20, 23)])
    tasks.app.runner.sync()  # type: ignore[attr-defined]
    gate.touch()
    for one in [*held, *low, *high, *group]:
        one.wait()
    order = [int(line) // 10 for line in lines(tmp_path / "log")]
    assert order == sorted(order, reverse=True)


def test_a_group_of_a_million_does_not_starve_a_single_call() -> None:
    tasks.add(1, 2).result  # noqa: B018
    group = tasks.add.parallelize([(x, x) for x in range(1_000_000)])
    began = time.monotonic()
    tasks.add(3, 4).result  # noqa: B018
    waited = time.monotonic() - began
    group.wait()
    everything = time.monotonic() - began
    assert waited < max(everything / 2, 0.25)


def test_giving_up_waiting_does_not_touch_the_call(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    invocation = tasks.wait_for(str(gate))
    with pytest.raises(TimeoutError, match="the call goes on"):
        invocation.get(timeout=0.05)
    gate.touch()
    assert invocation.result == str(gate)


def test_a_worker_that_dies_between_attempts_counts_no_attempt(tmp_path: Path) -> None:
    invocation = rules.ask_again(str(tmp_path / "log"), 0.3)
    wait_until(lambda: invocation.status is InvocationStatus.RETRY, "it waits for its next attempt")
    report = tasks.app.report()
    assert report is not None
    for worker in report["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    assert invocation.result == 1
    assert invocation.num_retries == 1
