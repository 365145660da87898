"""Coroutines and threads: many calls at once in one worker."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from pynenc import InvocationStatus
from pynenc.exceptions import (
    CycleDetectedError,
    InvocationCancelledError,
    TaskTimeoutError,
    WorkerLostError,
)
from tests import concurrent_tasks as concurrent
from tests import tasks
from tests.conftest import Lateness, configure, wait_until

LIMIT_S = 0.3
LATE_S = 0.25
"""How much later than its limit a call is over at the latest, by promise."""

counts_anew = pytest.mark.own_supervisor  # The most calls that a worker has ever seen at once.
pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.shares_supervisor]


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    configure(monkeypatch, NUM_WORKERS=count, SPARE_WORKERS=0)
    return count


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=1)


def log_of(directory: Path) -> list[str]:
    path = directory / "log"
    return path.read_text().split() if path.exists() else []


def wait_for(directory: Path, *lines: str) -> None:
    wait_until(lambda: set(lines) <= set(log_of(directory)), f"{lines} are logged")


def test_coroutines_run_at_once_in_each_worker(workers: int) -> None:
    pids = list(concurrent.meet.parallelize([(30,)] * 30 * workers).results)
    assert sorted(pids.count(pid) for pid in set(pids)) == [30] * workers


def test_threads_run_at_once_in_each_worker(workers: int) -> None:
    pids = list(concurrent.meet_in_threads.parallelize([()] * 4 * workers).results)
    assert sorted(pids.count(pid) for pid in set(pids)) == [4] * workers


@counts_anew
@pytest.mark.parametrize(
    "task", [concurrent.be_counted, concurrent.be_counted_in_threads], ids=["coroutines", "threads"]
)
def test_no_more_calls_run_at_once_than_the_option_says(task, workers: int) -> None:  # type: ignore[no-untyped-def]
    group = task.parallelize([(x,) for x in range(200)])
    assert max(group.results) == 3


@counts_anew
def test_a_key_holds_for_calls_in_one_worker(workers: int) -> None:
    assert 1 <= max(concurrent.at_most_two.parallelize([(x,) for x in range(40)]).results) <= 2


@counts_anew
@pytest.mark.usefixtures("one_worker")
def test_keys_let_others_run_beside_them() -> None:
    group = concurrent.one_per_host.parallelize([(f"host-{x % 5}", x) for x in range(60)])
    assert 2 <= max(group.results) <= 5


def test_a_call_that_waits_lends_its_key(workers: int) -> None:
    assert concurrent.countdown(5).get(timeout=60) == 5
    assert concurrent.countdown_in_threads(5).get(timeout=60) == 5


@pytest.mark.parametrize(
    "task",
    [concurrent.fibonacci, concurrent.fibonacci_blocking, concurrent.fibonacci_in_threads],
    ids=["await", "blocking", "threads"],
)
def test_calls_that_wait_leave_their_places_to_others(task, workers: int) -> None:  # type: ignore[no-untyped-def]
    assert task(11).get(timeout=60) == 89


def test_plain_calls_and_coroutines_wait_for_each_other_in_turns(workers: int) -> None:
    assert concurrent.plain_above(5).get(timeout=60) == 1 + sum(range(5))


def test_each_call_knows_itself_and_its_parent() -> None:
    group = concurrent.who_am_i.parallelize([(x,) for x in range(50)])
    ids = [invocation.invocation_id for invocation in group.invocations]
    assert list(group.results) == [(one, one, one) for one in ids]


def test_a_waiting_coroutine_is_paused(tmp_path: Path) -> None:
    above = concurrent.stray(str(tmp_path))
    assert above.get(timeout=60) == "ended"
    wait_for(tmp_path, "child-begins")
    waiting = stay_above(tmp_path)
    wait_until(lambda: waiting.status is InvocationStatus.PAUSED, "it waits")
    (tmp_path / "child").touch()
    assert waiting.get(timeout=60) > 0
    assert concurrent.length(b"still here").result == 10


def stay_above(tmp_path: Path):  # type: ignore[no-untyped-def]
    return concurrent.await_stay(str(tmp_path), "child")


def test_a_cycle_is_refused() -> None:
    with pytest.raises(CycleDetectedError, match="call_itself"):
        concurrent.call_itself(1).result  # noqa: B018


def test_dependencies_common_arguments_and_large_values() -> None:
    made = concurrent.many_bytes.parallelize([(1_000_000,)] * 4)
    lengths = concurrent.length.parallelize([{"data": one} for one in made], common_args={"more": b"y" * 300_000})
    assert list(lengths.results) == [1_300_000] * 4


def test_retries(tmp_path: Path) -> None:
    assert concurrent.fail_at_first(str(tmp_path / "log"), 2).result == 2


@pytest.mark.parametrize(
    ("how", "error"), [("exit", SystemExit), ("interrupt", KeyboardInterrupt), ("cancel", asyncio.CancelledError)]
)
def test_what_would_end_a_program_ends_the_call_alone(how: str, error: type[BaseException]) -> None:
    invocation = concurrent.leave(how)
    with pytest.raises(error, match="by itself"):
        invocation.result  # noqa: B018
    with pytest.raises(SystemExit, match="by itself"):
        concurrent.leave_thread().result  # noqa: B018
    assert concurrent.length(b"still here").result == 10


@pytest.mark.usefixtures("one_worker")
def test_a_forced_cancel_reaches_a_coroutine_and_leaves_the_others_alone(tmp_path: Path) -> None:
    bad, good = (concurrent.stay(str(tmp_path), name) for name in ("bad", "good"))
    wait_for(tmp_path, "bad-begins", "good-begins")
    bad.cancel()
    assert bad.status is InvocationStatus.RUNNING  # Without force, what runs is left alone.
    bad.cancel(force=True)
    with pytest.raises(InvocationCancelledError, match="cancelled with force"):
        bad.result  # noqa: B018
    assert bad.status is InvocationStatus.KILLED
    wait_for(tmp_path, "bad-cancelled", "bad-cleaned-up")
    (tmp_path / "good").touch()
    assert good.result > 0
    assert log_of(tmp_path).count("good-begins") == 1


@pytest.mark.usefixtures("one_worker")
def test_a_forced_cancel_ends_the_worker_of_a_thread_and_the_others_run_again(tmp_path: Path) -> None:
    bad, good = (concurrent.stay_in_thread(str(tmp_path), name) for name in ("bad", "good"))
    wait_for(tmp_path, "bad-begins", "good-begins")
    bad.cancel(force=True)
    with pytest.raises(InvocationCancelledError):
        bad.result  # noqa: B018
    assert bad.status is InvocationStatus.KILLED
    (tmp_path / "good").touch()
    assert good.result > 0
    wait_until(lambda: log_of(tmp_path).count("good-begins") == 2, "it ran again")


@pytest.mark.usefixtures("one_worker")
def test_queued_calls_are_cancelled_before_they_begin(tmp_path: Path) -> None:
    group = concurrent.be_counted_stay.parallelize([(str(tmp_path), "gate")] * 5)
    wait_until(lambda: len(log_of(tmp_path)) == 2, "two have begun")
    group.cancel()
    (tmp_path / "gate").touch()
    wait_until(lambda: all(one.status.is_final for one in group.invocations), "all have ended")
    ended = [invocation.status for invocation in group.invocations]
    assert ended.count(InvocationStatus.SUCCESS) == 2
    assert ended.count(InvocationStatus.CANCELLED) == 3


@pytest.mark.usefixtures("one_worker")
def test_a_coroutine_that_runs_too_long_is_cancelled(tmp_path: Path, lateness: Lateness) -> None:
    other = concurrent.stay(str(tmp_path), "other")
    wait_for(tmp_path, "other-begins")
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError, match="longer than option timeout"):
        concurrent.stay_for_a_while(str(tmp_path), "late").result  # noqa: B018
    assert LIMIT_S <= time.monotonic() - began <= LIMIT_S + LATE_S + lateness.of_all_s
    wait_for(tmp_path, "late-cleaned-up")
    (tmp_path / "other").touch()
    assert other.result > 0
    assert log_of(tmp_path).count("other-begins") == 1


def test_a_time_limit_is_retriable(tmp_path: Path) -> None:
    invocation = concurrent.stay_twice(str(tmp_path), "late")
    with pytest.raises(TaskTimeoutError):
        invocation.result  # noqa: B018
    assert log_of(tmp_path).count("late-begins") == 2
    assert invocation.num_retries == 1


@pytest.mark.usefixtures("one_worker")
def test_a_coroutine_that_ignores_its_limit_has_failed_all_the_same(tmp_path: Path, lateness: Lateness) -> None:
    concurrent.length(b"").result  # noqa: B018  # The worker is up.
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        concurrent.will_not_end(str(tmp_path)).result  # noqa: B018
    assert LIMIT_S <= time.monotonic() - began <= LIMIT_S + LATE_S + lateness.of_all_s
    assert concurrent.length(b"still here").result == 10
    (tmp_path / "end").touch()


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("how", ["loop", "process", "thread"])
def test_what_holds_everything_up_is_ended_in_time_and_the_others_run_again(
    how: str, tmp_path: Path, lateness: Lateness
) -> None:
    other = concurrent.stay(str(tmp_path), "other")
    wait_for(tmp_path, "other-begins")
    began = time.monotonic()
    held_up = {
        "loop": concurrent.hold_up_the_loop,
        "process": concurrent.hold_up_the_process,
        "thread": concurrent.stay_in_thread_for_a_while,
    }[how]()
    with pytest.raises(TaskTimeoutError):
        held_up.result  # noqa: B018
    assert LIMIT_S <= time.monotonic() - began <= LIMIT_S + LATE_S + lateness.of_all_s
    (tmp_path / "other").touch()
    assert other.result > 0
    assert log_of(tmp_path).count("other-begins") == 2


def test_calls_beside_one_that_kills_their_worker_succeed(workers: int, tmp_path: Path) -> None:
    group = concurrent.kill_worker_if.parallelize([(x, 7, str(tmp_path / "log")) for x in range(20)])
    outcomes = [invocation.exception for invocation in group.invocations]
    assert isinstance(outcomes.pop(7), WorkerLostError)
    assert outcomes == [None] * 19
    assert log_of(tmp_path).count("7") == 3  # In company, in company, alone.


@pytest.mark.usefixtures("one_worker")
def test_calls_that_must_not_run_twice_fail_with_their_worker() -> None:
    group = concurrent.kill_worker_once.parallelize([(x,) for x in range(3)])
    for invocation in group.invocations:
        with pytest.raises(WorkerLostError, match=r"while it ran this call .*rerun_on_worker_loss"):
            invocation.result  # noqa: B018


def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    group = concurrent.stay.parallelize([(str(tmp_path), f"gate-{x % 2}") for x in range(40)])
    wait_until(lambda: len(log_of(tmp_path)) == 40, "all have begun")
    report = tasks.app.report()
    assert report is not None
    for worker in report["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    for x in range(2):
        (tmp_path / f"gate-{x}").touch()
    assert len(list(group.results)) == 40
