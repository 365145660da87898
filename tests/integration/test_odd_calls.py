"""Calls as nobody expects them: what a hunt for bugs has found."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynenc import RetryError
from pynenc.exceptions import TaskTimeoutError, WorkerLostError
from tests import odd, tasks

pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.shares_supervisor]


def test_items_may_be_calls_that_their_generator_makes() -> None:
    assert list(odd.same.parallelize((odd.same(i),) for i in range(5)).results) == list(range(5))
    assert list(odd.same.parallelize(((odd.same(i),) for i in range(5)), name="made").results) == list(range(5))
    assert list(odd.same.stream((odd.same(i),) for i in range(5))) == list(range(5))
    assert list(odd.same.stream([(odd.same(7),)])) == [7]


def test_options_for_some_calls_hold_in_the_worker_too(tmp_path: Path) -> None:
    patient = odd.fail_first.with_options(retry_for=(KeyError,), max_retries=3)
    assert patient(str(tmp_path / "single")).result == 2
    assert list(patient.parallelize([(str(tmp_path / "group"),)]).results) == [2]
    with pytest.raises(KeyError):
        odd.fail_first(str(tmp_path / "without")).result  # noqa: B018
    for task in (odd.nap, odd.sleep_in_thread):
        with pytest.raises(TaskTimeoutError):
            task.with_options(timeout=0.2)(30.0).result  # noqa: B018
    assert odd.write.with_options(copy_arguments=True)(np.zeros(100_000)).result == 1.0


def test_a_done_callback_may_raise_anything(caplog: pytest.LogCaptureFixture) -> None:
    called: list[Any] = []
    first = odd.nap(0.05)
    first.add_done_callback(lambda done: sys.exit(1))
    first.add_done_callback(called.append)

    async def wait() -> float:
        return await odd.nap(0.1)

    assert asyncio.run(wait()) == 0.1
    second = odd.nap(0.05)
    second.add_done_callback(called.append)
    assert second.result == 0.05
    tasks.close()
    # The callbacks of two invocations may be called in two threads, and come in any order.
    assert sorted(one.invocation_id for one in called) == sorted([first.invocation_id, second.invocation_id])


def test_items_of_subclasses_stand_for_the_values_in_them() -> None:
    items: list[Any] = [odd.Row(1, 2), OrderedDict(x=3), odd.Row([1], [2]), OrderedDict(x=[4], y=[5]), (6, 7)]
    expected = [3, 3, [1, 2], [4, 5], 13]
    assert list(odd.add.parallelize(items).results) == expected
    assert list(odd.add.stream(iter(items))) == expected
    assert list(odd.add.parallelize(items, name="odd").results) == expected
    assert list(odd.add.parallelize([odd.Row(1, 2)] * 500).results) == [3] * 500


@pytest.mark.parametrize("name", [5, True, b"bytes", ("t",), "\ud800"])
def test_a_group_is_named_by_a_text(name: Any) -> None:
    other = odd.same(1)
    with pytest.raises(TypeError, match="the name of a group is a text"):
        odd.same.parallelize([(1,)], name=name)
    assert other.result == 1


@pytest.mark.parametrize("count", [0, -1, "a", 1.5])
def test_a_stream_has_at_least_one_call_in_flight(count: Any) -> None:
    with pytest.raises(ValueError, match="in_flight is a number of calls of at least 1"):
        odd.same.stream([(1,)], in_flight=count)


def test_parameters_may_have_any_name() -> None:
    assert odd.apply(func=1, cls=2, self=3).result == 6
    assert list(odd.apply.parallelize([odd.apply.args(func=1, cls=2), {"func": 3, "cls": 4, "self": 5}]).results) == [
        3,
        12,
    ]
    assert list(odd.apply.parallelize([{"func": 1}], common_args={"cls": 2}).results) == [3]
    assert odd.apply.with_options(copy_arguments=True)(func=1, cls=2, self=3).result == 6


def test_exceptions_on_which_nothing_can_be_set_are_delivered() -> None:
    call = odd.raise_frozen()
    assert isinstance(call.exception, odd.NotFound)
    assert "raise NotFound" in str(call.exception.__cause__)
    assert [type(one.exception) for one in odd.raise_frozen.parallelize([()] * 3).outcomes] == [odd.NotFound] * 3


def test_a_lost_call_whose_arguments_want_to_leave_the_program_is_told_of() -> None:
    error = odd.die_with(odd.Shy()).exception
    assert isinstance(error, WorkerLostError)
    assert str(error).endswith("its arguments: (cannot be shown: SystemExit)")


def test_paths_of_any_kind_in_the_path_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/somewhere"), b"/else", None])
    assert odd.same(5).result == 5


def test_the_delay_of_a_retry_has_an_end() -> None:
    with pytest.raises(ValueError, match="at most"):
        RetryError(delay=1e12)
