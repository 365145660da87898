"""Calls that end as nobody expects, however they are run: in worker processes, and in synchronous mode."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from pynenc import SerializationError
from tests import odd

pytestmark = pytest.mark.shares_supervisor


@pytest.mark.parametrize("how", ["gather", "group", "task", "callback"])
@pytest.mark.parametrize("code", [3, "why"])
def test_an_exit_of_what_a_coroutine_has_started_ends_that_call_alone(how: str, code: Any) -> None:
    error = odd.exit_beside(how, code).exception
    assert type(error) is SystemExit
    assert error.code == code
    assert odd.nap(0.0).get(timeout=20) == 0.0


@pytest.mark.parametrize("where", odd.RAISE_HOSTILE)
@pytest.mark.parametrize("when", ["pickled", "read", "shown"])
def test_an_exception_that_wants_to_leave_the_program_fails_its_call_alone(where: str, when: str) -> None:
    error = odd.RAISE_HOSTILE[where](when).exception
    if when == "shown":
        assert type(error) is odd.Hostile
    else:
        assert type(error) is SerializationError
        assert str(error) == "the task raised Hostile: hostile; it cannot be pickled: SystemExit: 4"
    assert odd.same(7).get(timeout=20) == 7


@pytest.mark.parametrize("when", ["pickled", "read", "shown"])
def test_an_exception_that_interrupts_the_program_ends_only_the_script_that_runs_it(when: str, mode: str) -> None:
    if mode == "synchronous":
        with pytest.raises(KeyboardInterrupt):
            odd.raise_hostile(when, KeyboardInterrupt)
    else:
        error = odd.raise_hostile(when, KeyboardInterrupt).exception
        assert type(error) is (odd.Hostile if when == "shown" else SerializationError)
    assert odd.same(7).get(timeout=20) == 7


@pytest.mark.parametrize("kind", ["none", "negative", "text", "hostile"])
def test_an_exception_that_asks_for_another_attempt_in_an_odd_way_is_told_of(kind: str, tmp_path: Path) -> None:
    patient = odd.raise_again.with_options(max_retries=1)
    invocation = patient(str(tmp_path / "log"), kind)
    if kind in ("text", "hostile"):
        assert invocation.exception is not None
        assert invocation.num_retries == 0
    else:
        assert invocation.get(timeout=20) == 7


def test_a_failure_is_the_same_however_often_it_is_looked_at() -> None:
    invocation = odd.fail_below(3)

    def frames() -> int:
        with pytest.raises(ValueError, match="below") as raised:
            invocation.result  # noqa: B018
        return len(raised.traceback)

    assert len({frames() for _ in range(5)}) == 1
    with pytest.raises(ValueError, match="below"):
        asyncio.run(async_result(invocation))
    assert frames() == frames()


async def async_result(invocation: Any) -> Any:
    return await invocation


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_what_a_done_callback_raises_is_logged(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Semaphore(0)

    def leave(_: object) -> None:
        raise error("on purpose")

    invocation = odd.same(7)
    invocation.add_done_callback(leave)
    invocation.add_done_callback(lambda _: called.release())
    assert called.acquire(timeout=20)
    assert invocation.result == 7
    assert [(one.message, one.exc_info and one.exc_info[0]) for one in caplog.records] == [
        ("a done callback raised", error)
    ]


def test_a_thread_in_the_context_of_a_call_belongs_to_it() -> None:
    assert odd.know_itself_in_thread().get(timeout=20)
    assert odd.know_itself_beside_others().get(timeout=20)
