"""Memory: who is ended, who is replaced, and what the user sees.

| what happens | the call that runs | the others |
| --- | --- | --- |
| a call takes its worker beyond `worker_memory_limit` | fails with WorkerMemoryError | are run |
| a worker is above 80% of it between calls | - | run in the fresh one |
| a worker has had `max_calls_per_worker`, or is older than `max_worker_age` | ends as always | run in the fresh one |
| a worker is killed while it holds much | WorkerLostError says how much | are run |
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from pynenc import WorkerLostError, WorkerMemoryError
from tests import hungry, tasks
from tests.conftest import configure, wait_until

LIMIT_MIB = 150


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, WORKER_MEMORY_LIMIT=f"{LIMIT_MIB} MiB")


@pytest.mark.usefixtures("limited")
def test_a_call_above_the_limit_is_ended_and_told_of(tmp_path: Path) -> None:
    neighbours = tasks.note.parallelize([(str(tmp_path / "log"), x) for x in range(200)])
    error = hungry.hold(400, "greedy").exception
    assert isinstance(error, WorkerMemoryError)
    text = str(error)
    for part in ("tests.hungry.hold", "mib=400, name='greedy'", f"{LIMIT_MIB} MiB", "worker_memory_limit", "pid "):
        assert part in text
    assert list(neighbours.results) == list(range(200))
    assert tasks.add(1, 2).result == 3
    (found,) = Path(tasks.app.conf.state_path).glob("*.db")
    tasks.close()
    assert str(tasks.app.get_invocation(error.invocation_id).exception) == text, found


@pytest.mark.usefixtures("limited")
def test_a_worker_that_leaks_is_replaced_between_calls_and_none_fails() -> None:
    pids = list(hungry.leak.parallelize([(2,)] * 300).results)
    assert len(set(pids)) >= 300 * 2 / LIMIT_MIB, "nobody was replaced"


@pytest.mark.usefixtures("limited")
def test_memory_that_a_call_gives_back_costs_no_worker() -> None:
    pids = Counter(hungry.use_and_drop(LIMIT_MIB - 20).result for _ in range(20))
    assert len(pids) <= 2


@pytest.mark.usefixtures("limited")
def test_a_worker_that_runs_many_calls_is_replaced_too() -> None:
    pids = list(hungry.leak_on_loop.parallelize([(2,)] * 300).results)
    assert len(set(pids)) >= 300 * 2 / LIMIT_MIB


@pytest.mark.usefixtures("limited")
def test_of_many_calls_in_one_worker_only_the_greedy_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=1)
    log = str(tmp_path / "log")
    calls = hungry.hold_in_thread.parallelize([(0, log), (400, log), (0, log), (0, log)])
    outcomes = list(calls.outcomes)
    assert [type(one.exception) for one in outcomes if not one.ok] == [WorkerMemoryError]
    assert [one.ok for one in outcomes] == [True, False, True, True]


@pytest.mark.usefixtures("limited")
def test_the_error_may_be_retried(tmp_path: Path) -> None:
    assert hungry.hold_at_first(str(tmp_path / "log"), 400).result == 2


@pytest.mark.usefixtures("limited")
def test_of_calls_on_top_of_each_other_the_lowest_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=1)
    with pytest.raises(WorkerMemoryError, match="wait_for_greedy, which waits for others"):
        hungry.wait_for_greedy(400).result  # noqa: B018
    assert tasks.add(1, 2).result == 3
    # The other one ran once more, alone, and ended for what it had done itself.
    failed = {counts.task_id: counts.failed for counts in tasks.app.state_backend.counts_by_task()}
    assert failed["tests.hungry.hold"] == 1


def test_no_worker_is_given_more_calls_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, MAX_CALLS_PER_WORKER=100)
    pids = Counter(tasks.worker_pid.parallelize([()] * 1000).results)
    assert max(pids.values()) <= 100
    assert sum(pids.values()) == 1000
    singles = Counter(tasks.worker_pid().result for _ in range(250))
    assert max((pids + singles).values()) <= 100


def test_each_call_may_have_a_worker_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, MAX_CALLS_PER_WORKER=1)
    assert len(set(tasks.worker_pid.parallelize([()] * 10).results)) == 10
    assert hungry.call_and_wait(1).result == 2


def test_calls_that_nobody_waits_for_leave_before_their_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, MAX_CALLS_PER_WORKER=1)
    made = [hungry.pid_and_child(x).result for x in range(8)]
    assert [tasks.app.get_invocation(child).result for _, child in made] == list(range(1, 9))


def test_workers_that_run_many_calls_have_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, MAX_CALLS_PER_WORKER=30)
    pids = Counter(hungry.leak_on_loop.parallelize([(0,)] * 300).results)
    assert sum(pids.values()) == 300
    assert max(pids.values()) <= 30


def test_old_workers_are_replaced_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, MAX_WORKER_AGE=0.3, NUM_WORKERS=1)
    pids = list(tasks.worker_pid.parallelize([()] * 3).results)
    while tasks.worker_pid().result in pids:
        pass
    pid = hungry.thread_left(0.5).result  # However old it is by the end of its call.
    wait_until(lambda: not psutil.pid_exists(pid) or tasks.worker_pid().result != pid, "the old worker is replaced")
    wait_until(lambda: not psutil.pid_exists(pid), "the old worker has ended")


def test_a_lost_call_is_told_of_with_its_arguments_and_its_workers_memory() -> None:
    error = hungry.hold_and_die(100).exception
    assert isinstance(error, WorkerLostError)
    assert "its arguments: mib=100" in str(error)
    assert "MiB when that was last read" in str(error)
    assert "of memory" not in str(error) or "num_workers" in str(error)
    assert "short" not in str(error), "nobody was short of memory"


def test_a_kill_near_the_limit_looks_like_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, WORKER_MEMORY_LIMIT="100 MiB")
    error = hungry.hold_and_die.with_options(rerun_on_worker_loss=False)(70).exception
    assert isinstance(error, WorkerLostError)
    assert "this looks like the kernel ended it because memory was short" in str(error)
    assert "worker_memory_limit is 100 MiB" in str(error)
    assert "num_workers" in str(error)


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_arguments_are_shown_in_few_words_whatever_they_are(number: signal.Signals) -> None:
    text = str(hungry.die_with("x" * 1000, list(range(10_000)), hungry.Shy()).exception)
    shown = text.partition("its arguments: ")[2]
    assert shown.startswith("text='xxx")
    assert "numbers=[0, 1, 2" in shown
    assert "Shy" in shown
    assert len(shown) <= 200
    large = str(hungry.die_with("x" * 200_000, []).exception)
    assert "its arguments: 200," in large
    assert "bytes" in large


def test_the_report_tells_what_workers_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, WORKER_MEMORY_LIMIT="300 MiB")
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    call = hungry.hold_until(100, str(begun), str(gate))
    wait_until(begun.exists, "the call has begun")
    report = tasks.app.report()
    assert report is not None
    assert report["memory_limit_bytes"] == 300 << 20
    most = max(report["workers"], key=lambda worker: worker["memory_bytes"])
    assert 100 << 20 <= most["memory_bytes"] <= 150 << 20
    assert most["pid"] != os.getpid()
    gate.touch()
    assert call.result == 100
