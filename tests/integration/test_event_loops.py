"""What user code may do to the event loop that its coroutine shares with others."""

from __future__ import annotations

import asyncio

import pytest

from pynenc.exceptions import WorkerLostError
from tests import odd, tasks
from tests.conftest import configure, wait_until

pytestmark = [pytest.mark.usefixtures("leaves_nothing", "one_worker"), pytest.mark.shares_supervisor]


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=1, SPARE_WORKERS=0)


def worker_pids() -> list[int]:
    report = tasks.app.report()
    assert report is not None
    return [worker["pid"] for worker in report["workers"]]


def test_an_exit_beside_a_coroutine_leaves_its_worker_and_the_others_alone() -> None:
    others = odd.nap.parallelize([(0.3,)] * 5)
    exits = [odd.exit_beside(how, "interrupt") for how in ("gather", "group", "task")]
    assert [type(one.exception) for one in exits] == [KeyboardInterrupt] * 3
    assert "in leave" in str(exits[0].exception.__cause__)
    wait_until(lambda: len(worker_pids()) == 2, "the one for coroutines is there, and the one for other calls")
    pids = worker_pids()
    assert list(others.results) == [0.3] * 5
    assert worker_pids() == pids


@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_an_exit_in_a_loop_that_is_turned_from_inside_hits_the_call_to_which_it_belongs(whose: str) -> None:
    blocked = odd.exit_beside_while_blocked(whose)
    if whose == "its own":
        assert type(blocked.exception) is SystemExit
    else:
        assert blocked.get(timeout=20) == 0.01
    assert odd.nap(0.0).get(timeout=20) == 0.0


def test_a_loop_that_is_stopped_goes_on() -> None:
    other = odd.nap(0.2)
    assert odd.stop_loop(0.01).get(timeout=20) == 0.01
    assert other.get(timeout=20) == 0.2


def test_a_loop_that_is_broken_ends_with_its_worker() -> None:
    broken, other = odd.break_loop(), odd.nap(0.05)
    assert isinstance(broken.exception, WorkerLostError)
    assert other.get(timeout=20) == 0.05


def test_calls_that_another_one_cancels_before_they_begin_have_an_outcome() -> None:
    odd.nap(0.0).wait()  # The worker is up, so that what follows begins in one turn of its loop.
    group = odd.same_after_cancel.parallelize([(x,) for x in range(20)])
    ended = [type(one.exception) for one in group.outcomes]
    assert ended[0] is type(None)
    assert set(ended) <= {type(None), asyncio.CancelledError}
