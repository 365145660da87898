"""Tasks that call tasks and wait for them: never a deadlock, whatever the depth and the number of workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pynenc import InvocationStatus
from pynenc.exceptions import TaskTimeoutError, WorkerLostError
from pynenc.protocol.messages import parse_invocation_id, split_number
from tests import concurrent_tasks, rules, tasks
from tests.conftest import Lateness, configure, wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(params=[1, 2], autouse=True)
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    configure(monkeypatch, NUM_WORKERS=request.param)
    return int(request.param)


def test_recursive_fibonacci() -> None:
    assert rules.fibonacci(12).get(timeout=60) == 144


def test_a_deep_chain_of_waiting_calls() -> None:
    assert rules.chain(50).get(timeout=60) == 50


def test_a_group_inside_a_call() -> None:
    assert list(rules.sum_of_squares.parallelize([(1_000,)] * 8).results) == [332_833_500] * 8


def test_results_as_they_come_inside_a_call() -> None:
    assert rules.as_they_come(300).get(timeout=60) == sum(x * x for x in range(300))


def test_calls_that_a_call_leaves_behind_are_known_before_its_result() -> None:
    for x in range(50):
        _, child_id = tasks.fire_children(x).result
        assert tasks.app.get_invocation(child_id).result == x + 1


def test_calls_that_a_call_leaves_behind_outlive_its_worker() -> None:
    for x in range(3):
        worker, child_id = tasks.fire_children(x).result
        os.kill(worker, signal.SIGKILL)
        assert tasks.app.get_invocation(child_id).get(timeout=60) == x + 1


def test_threads_of_a_call_wait_too() -> None:
    assert rules.wait_in_threads(20).get(timeout=60) == sum(x * x for x in range(20))


def test_an_event_loop_in_a_call_waits_too() -> None:
    assert rules.wait_in_event_loop(20).get(timeout=60) == sum(x * x for x in range(20))


def test_event_loops_wait_in_a_chain_longer_than_there_are_spare_workers(workers: int) -> None:
    assert rules.event_loop_chain(6).get(timeout=60) == 6
    wait_until(lambda: len(worker_pids()) == workers, "spare workers end")


def test_coroutines_wait_in_a_chain_longer_than_there_are_places_for_them(workers: int) -> None:
    assert rules.async_chain(6).get(timeout=60) == 6
    wait_until(lambda: len(worker_pids()) == workers, "all are there, and no spare ones")
    assert 1 <= len(worker_pids(concurrent=True)) <= workers


def test_more_waiting_calls_than_workers(workers: int) -> None:
    assert list(rules.chain.parallelize([(3,)] * 30).results) == [3] * 30
    wait_until(lambda: len(worker_pids()) == workers, "spare workers end")


def test_a_call_that_waits_has_its_time_limit_too(tmp_path: Path, workers: int, lateness: Lateness) -> None:
    above = rules.wait_too_long(str(tmp_path / "at"), str(tmp_path / "gate"))
    with pytest.raises(TaskTimeoutError, match="longer than option timeout"):
        above.result  # noqa: B018
    (tmp_path / "gate").touch()
    number = parse_invocation_id(above.invocation_id)
    assert number is not None
    (failure,) = tasks.app.state_backend.attempts_of(*split_number(number)).failures
    assert 0.4 <= failure.ended - failure.started <= 0.4 + 0.25 + lateness.of_all_s
    assert [change.status for change in above.history] == ["REGISTERED", "RUNNING", "PAUSED", "FAILED"]


def test_a_call_sees_that_one_which_it_waits_for_takes_too_long(tmp_path: Path) -> None:
    """That one is ended with its worker, so it runs in another one."""
    log = tmp_path / "log"
    assert rules.wait_for_one_that_stays(str(log)).get(timeout=30) == "it was late"
    assert log.read_text().split() == ["waits", "stays"]


def test_without_spare_workers_what_waits_for_one_that_takes_too_long_does_not_run_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    configure(monkeypatch, NUM_WORKERS=1, SPARE_WORKERS=0)
    error = rules.wait_for_one_that_stays(str(log)).exception
    assert isinstance(error, WorkerLostError)
    assert "with more spare_workers it has one of its own" in str(error)
    assert log.read_text().split() == ["waits", "stays"] * 2


def test_a_history_tells_of_waits_and_of_dead_workers(tmp_path: Path) -> None:
    waited = rules.chain(1)
    assert waited.result == 1
    assert [change.status for change in waited.history] == ["REGISTERED", "RUNNING", "PAUSED", "RESUMED", "SUCCESS"]
    again = tasks.die_once(str(tmp_path / "once"))
    assert again.get(timeout=60) == "survived"
    assert [change.status for change in again.history] == ["REGISTERED", "RUNNING", "REROUTED", "RUNNING", "SUCCESS"]
    awaited = concurrent_tasks.fibonacci(2)
    assert awaited.result == 1
    assert [change.status for change in awaited.history][:4] == ["REGISTERED", "RUNNING", "PAUSED", "RESUMED"]


def worker_pids(concurrent: bool = False) -> list[int]:
    report = tasks.app.report()
    assert report is not None
    return [worker["pid"] for worker in report["workers"] if worker["concurrent"] == concurrent]


def test_a_call_gives_up_waiting_and_goes_on(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("at", "gate", "log")]
    if tasks.app.conf.num_workers == 1:
        pytest.skip("the call that is waited for runs on top of the one that would give up")
    # Both workers have started: else the one that is there would run it on top, too.
    (tmp_path / "crowd").mkdir()
    assert len(set(tasks.crowd.parallelize([(str(tmp_path / "crowd"),)] * 2).results)) == 2
    assert rules.give_up_waiting(*names).get(timeout=30) == 2


def test_a_waiting_call_shows_as_paused(tmp_path: Path) -> None:
    if tasks.app.conf.num_workers == 1:
        pytest.skip("it runs what it waits for itself")
    parent = rules.chain_behind(str(tmp_path / "at"), str(tmp_path / "gate"))
    wait_until(lambda: parent.status is InvocationStatus.PAUSED, "the call waits")
    Path(tmp_path / "gate").touch()
    assert parent.get(timeout=30) is None


def test_a_child_that_kills_its_workers_fails_and_its_parent_is_told(tmp_path: Path) -> None:
    parent = rules.poisoned_parent(str(tmp_path / "log"))
    with pytest.raises(WorkerLostError):
        parent.get(timeout=30)
    assert tasks.add(1, 2).get(timeout=30) == 3
    tried = (tmp_path / "log").read_text().split()
    assert tried.count("parent") <= 2
    assert tried.count("child") <= 2


def test_what_a_child_raises_can_be_caught() -> None:
    assert rules.catch_failure().get(timeout=30) == "never"


def test_a_call_that_waited_is_itself_again() -> None:
    group = rules.own_id_around.parallelize([(x,) for x in range(100)])
    for invocation, (before, after, result) in zip(group, group.results, strict=True):
        assert before == after == invocation.invocation_id
        assert result == int(invocation.arguments.kwargs["x"]) ** 2


@pytest.mark.parametrize("how", ["plain", "limited", "thread"])
def test_what_a_call_waits_for_does_not_stay_behind_a_long_one(how: str, tmp_path: Path, workers: int) -> None:
    if workers == 1:
        pytest.skip("the long call has the only worker")
    at, gate, log = tmp_path / "at", tmp_path / "gate", tmp_path / "log"
    (tmp_path / "crowd").mkdir()  # Both workers have started.
    assert len(set(tasks.crowd.parallelize([(str(tmp_path / "crowd"),)] * 2).results)) == 2
    held = rules.hold(str(at), str(gate))
    wait_until(at.exists, "the long call runs")
    try:
        assert rules.wait_for_one_in_other_hands(str(log), how).get(timeout=15) == 1
        assert held.status is InvocationStatus.RUNNING
    finally:
        gate.touch()
    assert held.get(timeout=30) is None
    assert log.read_text().split() == ["1"]
