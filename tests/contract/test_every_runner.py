"""What holds for calls however they are run: in worker processes, and in synchronous mode."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pynenc import InvocationStatus, Pynenc, SerializationError, Task, TaskError
from pynenc.exceptions import CycleDetectedError, DependencyError, InvocationNotFoundError, WorkerTraceback
from pynenc.invocation import (
    DistributedInvocation,
    DistributedInvocationGroup,
    ReusedInvocation,
    SynchronousInvocation,
    SynchronousInvocationGroup,
)
from tests import keyed, odd, plain, rules, tasks
from tests.conftest import wait_until

pytestmark = pytest.mark.shares_supervisor


def test_a_call_gives_an_invocation_whose_result_is_what_the_function_returns(mode: str) -> None:
    invocation = tasks.add(1, 2)
    kind = DistributedInvocation if mode == "distributed" else SynchronousInvocation
    assert type(invocation) is kind
    assert invocation.result == 3
    assert invocation.result == 3
    assert invocation.status is InvocationStatus.SUCCESS
    assert invocation.exception is None
    assert invocation.num_retries == 0
    assert invocation.get_final_result() == 3
    assert invocation.task is tasks.add
    assert invocation.app is tasks.app


def test_parallelize_takes_tuples_dictionaries_and_arguments_mixed(mode: str) -> None:
    group = tasks.add.parallelize([(1, 1), tasks.add.args(1, 2), {"x": 2, "y": 3}])
    kind = DistributedInvocationGroup if mode == "distributed" else SynchronousInvocationGroup
    assert type(group) is kind
    assert list(group.results) == [2, 3, 5]
    assert list(group.results) == [2, 3, 5]
    assert len(group) == len(group.invocations) == 3
    assert [invocation.result for invocation in group] == [2, 3, 5]
    assert group[-1].result == 5
    assert [invocation.result for invocation in group[1:]] == [3, 5]
    assert group.invocations[0] == group[0]
    assert group.counts == {InvocationStatus.SUCCESS: 3}
    with pytest.raises(IndexError):
        group[3]


def test_an_empty_group_is_done() -> None:
    group = tasks.add.parallelize([])
    assert list(group.results) == []
    assert len(group) == 0
    assert group.wait(0)
    assert group.counts == {}


@pytest.mark.parametrize(
    ("invocation", "expected"),
    [
        (lambda: tasks.total(1, 2, 3, a=4), 10),
        (lambda: tasks.total(), 0),
        (lambda: tasks.keyword_only(x=5), 5),
        (lambda: tasks.add(y=1, x=2), 3),
        (lambda: tasks.add._call(tasks.add.args(4, y=5)), 9),
        (lambda: tasks.total._call(tasks.total.args(1, 2, a=3)), 6),
        (lambda: tasks.slowly_double(4), 8),
        (lambda: tasks.made_of_plain(4), 12),
    ],
)
def test_arguments_reach_the_function_however_the_call_is_written(invocation, expected) -> None:  # type: ignore[no-untyped-def]
    assert invocation().result == expected


def test_arguments_are_what_they_were_at_the_call() -> None:
    items = [1, 2]
    invocation = tasks.echo(items)
    items.append(3)
    assert invocation.result == [1, 2]
    assert invocation.arguments.kwargs == {"value": [1, 2]}


def test_items_that_zip_puts_together_are_calls() -> None:
    numbers = list(range(3_000))
    assert list(tasks.add.parallelize(zip(numbers, reversed(numbers), strict=True)).results) == [2_999] * 3_000
    assert list(tasks.add.parallelize(zip(numbers, numbers, strict=True)).results) == [2 * x for x in numbers]

    def growing() -> Iterator[list[int]]:
        items: list[int] = []
        for x in range(5):
            items.append(x)
            yield items

    assert list(tasks.echo.parallelize(zip(growing(), strict=True)).results) == [list(range(x + 1)) for x in range(5)]


def test_items_that_a_generator_uses_again_are_told_apart() -> None:
    def growing() -> Iterator[tuple[list[int]]]:
        shared: list[int] = []
        for number in range(5):
            shared.append(number)
            yield (shared,)

    assert list(tasks.echo.parallelize(growing()).results) == [list(range(n)) for n in range(1, 6)]


def test_calls_do_not_share_arguments_or_results() -> None:
    shared: list[int] = []
    assert list(tasks.append_to.parallelize([(shared,)] * 4).results) == [[1]] * 4
    assert shared == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(1 << 70),
        1.5,
        float("inf"),
        1j,
        "",
        "ä\udc80",
        "x" * 100_000,
        b"",
        b"\0" * 300_000,
        (),
        [],
        {},
        {1},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_values_come_back_equal_and_of_the_same_type(value: object) -> None:
    for result in (tasks.echo(value).result, *tasks.echo.parallelize([(value,), (value,)]).results):
        assert result == value
        assert type(result) is type(value)


def test_what_a_task_raises_is_raised_by_the_result(mode: str) -> None:
    invocation = tasks.fail("boom")
    with pytest.raises(ValueError, match="boom") as raised:
        _ = invocation.result
    assert invocation.status is InvocationStatus.FAILED
    assert isinstance(invocation.exception, ValueError)
    if mode == "distributed":
        assert isinstance(raised.value.__cause__, WorkerTraceback)
        assert "raise ValueError(message)" in str(raised.value.__cause__)


@pytest.mark.parametrize("kind", ["unfriendly", "unpicklable", "mute"])
def test_an_exception_that_cannot_travel_fails_its_call_alone(kind: str) -> None:
    error = tasks.fail_with(kind).exception
    if kind == "mute":
        assert type(error) is tasks.Mute
    else:
        assert isinstance(error, SerializationError)
        assert "the task raised" in str(error)
    assert tasks.add(1, 1).result == 2


def test_the_end_of_an_iterator_that_a_task_lets_out_is_told_as_it_was(mode: str) -> None:
    """Python ends loops by it, so it is easily taken for the end of one of the engine's own."""
    error = tasks.fail_with("stop").exception
    assert type(error) is StopIteration
    assert error.value == 7
    if mode == "distributed":
        assert "raise StopIteration(7)" in str(error.__cause__)
    group = tasks.fail_with.parallelize([("stop",), ("",)])
    assert [type(one.exception) for one in group.outcomes] == [StopIteration, type(None)]
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(group.results)


def test_an_exit_in_a_task_fails_the_call_and_nothing_else() -> None:
    assert type(tasks.fail_with("exit").exception) is SystemExit
    assert tasks.add(1, 1).result == 2


def test_an_interrupt_in_a_task_fails_the_call_and_ends_the_script_only_if_that_runs_it(mode: str) -> None:
    if mode == "distributed":
        assert type(tasks.fail_with("interrupt").exception) is KeyboardInterrupt
    else:
        with pytest.raises(KeyboardInterrupt):
            tasks.fail_with("interrupt")
    assert tasks.add(1, 1).result == 2


def test_a_task_may_return_invocations_and_groups() -> None:
    invocation, group = tasks.children(3).result
    assert invocation.result == 4
    assert list(group.results) == [3, 4, 5]
    assert tasks.app.get_invocation(invocation.invocation_id).result == 4
    assert pickle.loads(pickle.dumps(invocation)).result == 4


def test_an_id_that_means_nothing_is_not_found(mode: str) -> None:
    gone = "1-999999-1" if mode == "distributed" else tasks.add(1, 1).invocation_id
    with pytest.raises(InvocationNotFoundError, match=gone):
        tasks.app.get_invocation(gone)


def test_a_result_that_cannot_be_pickled_fails_its_call_alone() -> None:
    with pytest.raises(SerializationError, match="lock cannot be pickled"):
        _ = tasks.give_lock().result
    assert tasks.add(1, 1).result == 2


def test_an_argument_that_cannot_be_pickled_is_named_at_the_call() -> None:
    import threading

    with pytest.raises(TypeError, match="argument 'y'"):
        tasks.add(1, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument 'value'"):
        tasks.echo.parallelize([(1,), (threading.Lock(),)])


def test_lambdas_closures_and_local_classes_travel_both_ways() -> None:
    offset = 10

    class Local:
        value = 5

    assert tasks.apply(lambda x: x + offset, 1).result == 11
    assert tasks.give_lambda().result(1) == 2
    assert tasks.echo(Local).result.value == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda: tasks.add(),
        lambda: tasks.add(1, 2, 3),
        lambda: tasks.add(1, z=2),
        lambda: tasks.keyword_only(1),
        lambda: tasks.add.args(1, 2, 3),
        lambda: tasks.add.parallelize([(1, 2, 3)]),
        lambda: tasks.add.parallelize([{"z": 1}]),
        lambda: tasks.add.parallelize([5]),
        lambda: tasks.add.parallelize(["ab"]),
    ],
)
def test_a_wrong_call_raises_where_it_is_made(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        call()


def test_outcomes_show_failures_beside_results() -> None:
    group = tasks.fail_odd.parallelize([(x,) for x in range(6)])
    outcomes = list(group.outcomes)
    assert [outcome.ok for outcome in outcomes] == [True, False] * 3
    assert [outcome.result for outcome in outcomes[::2]] == [0, 2, 4]
    assert [str(outcome.exception) for outcome in outcomes[1::2]] == ["1 is odd", "3 is odd", "5 is odd"]
    assert group.counts == {InvocationStatus.SUCCESS: 3, InvocationStatus.FAILED: 3}
    results = group.results
    assert next(results) == 0
    with pytest.raises(ValueError, match="1 is odd"):
        next(results)


def test_as_completed_gives_every_invocation_once() -> None:
    group = tasks.fail_odd.parallelize([(x,) for x in range(700)])
    seen = [invocation.invocation_id for invocation in group.as_completed()]
    assert sorted(seen) == sorted(invocation.invocation_id for invocation in group)


def test_stream_gives_results_in_order_and_takes_no_more_items_than_it_needs() -> None:
    taken = []

    def endless() -> Iterator[tuple[int]]:
        number = 0
        while True:
            taken.append(number)
            yield (number,)
            number += 1

    stream = tasks.echo.stream(endless(), in_flight=8)
    assert [next(stream) for _ in range(50)] == list(range(50))
    assert len(taken) <= 50 + 16
    assert sorted(tasks.echo.stream([(x,) for x in range(1000)], ordered=False)) == list(range(1000))
    assert list(tasks.echo.stream([])) == []


def test_awaiting_gives_results_in_an_event_loop() -> None:
    async def gather() -> tuple[int, list[int], list[int]]:
        group = tasks.add.parallelize([(x, 1) for x in range(10)])
        streamed = [result async for result in group.async_results()]
        together = await asyncio.gather(*(tasks.add(x) for x in range(5)))
        return await tasks.add(1, 2), streamed, together

    assert asyncio.run(gather()) == (3, list(range(1, 11)), list(range(5)))


def test_done_callbacks_are_called_once_with_the_invocation() -> None:
    import threading

    called: list[str] = []
    done = threading.Semaphore(0)

    def callback(invocation) -> None:  # type: ignore[no-untyped-def]
        called.append(invocation.invocation_id)
        done.release()

    invocations = [tasks.add(1), tasks.fail("x"), *tasks.add.parallelize([(x,) for x in range(10)])]
    for invocation in invocations:
        invocation.add_done_callback(callback)
    for _ in invocations:
        assert done.acquire(timeout=20)
    invocations[0].add_done_callback(callback)
    assert done.acquire(timeout=20)
    assert sorted(called) == sorted([*(i.invocation_id for i in invocations), invocations[0].invocation_id])


def test_a_task_knows_its_invocation() -> None:
    invocation = tasks.who()
    assert invocation.result == (invocation.invocation_id, "Arguments()")
    with pytest.raises(RuntimeError, match="outside of any task"):
        _ = tasks.who.invocation


def test_a_child_knows_its_parent() -> None:
    parent = tasks.children(1)
    child, _ = parent.result
    assert child.result == 2
    assert child.parent_invocation == parent


def test_tasks_travel_as_arguments() -> None:
    assert tasks.echo(tasks.add).result == tasks.add
    assert pickle.loads(pickle.dumps(tasks.add)) == tasks.add


def test_call_ids_tell_equal_calls() -> None:
    first, second, third = tasks.add(1), tasks.add(y=0, x=1), tasks.add(2)
    assert first.call_id == second.call_id != third.call_id
    assert first.call == second.call
    assert first.call.serialized_arguments.keys() == {"x", "y"}


def test_invocations_and_groups_as_arguments_are_their_results() -> None:
    one, group = tasks.add(1, 0), tasks.add.parallelize([(1, 1), (2, 2)])
    assert keyed.plus(one, keyed.plus(one, 5)).result == 7
    assert keyed.see([(one,), {"group": group}]).result == "[(1,), {'group': [2, 4]}]"
    assert list(tasks.add.parallelize([(one, x) for x in range(3)]).results) == [1, 2, 3]


def test_a_failed_dependency_is_named_by_what_depends_on_it() -> None:
    bad = keyed.fail_because("no flour")
    with pytest.raises(DependencyError, match=f"{bad.invocation_id}.*no flour"):
        keyed.plus(keyed.plus(bad, 1), 1).result  # noqa: B018


@pytest.mark.own_supervisor
def test_a_cached_call_runs_once(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    first = keyed.remembered(1, 2, log)
    assert first.result == 3
    again = keyed.remembered(x=1, y=2, log="elsewhere")
    assert isinstance(again, ReusedInvocation)
    assert not isinstance(first, ReusedInvocation)
    assert (again.result, again.diff_arg, again) == (3, None, first)
    assert again.arguments == first.arguments
    assert tasks.app.get_invocation(again.invocation_id).result == 3
    assert list(keyed.remembered.parallelize([(1, 2, log), (2, 2, log)]).results) == [3, 4]
    assert (tmp_path / "log").read_text().split() == ["1", "2"]


def test_calls_share_common_arguments() -> None:
    table = tasks.echo({1: 10, 2: 20})
    for common in ({1: 10, 2: 20}, table):
        group = keyed.shared.parallelize([(1,), {"x": 2, "factor": 3}], common_args={"table": common})
        assert list(group.results) == [10, 60]
        assert group[1].arguments.kwargs["x"] == 2


@pytest.mark.own_supervisor
def test_tasks_with_keys_give_their_results(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert list(keyed.per_host.parallelize([(place, "a", x) for x in range(5)]).results) == list(range(5))
    assert keyed.registered_for_user("ann", "hello").result == "ann: hello"
    named = [keyed.imported.parallelize([(f"{place}/log", x) for x in range(4)], name="n").results for _ in range(2)]
    assert [list(one) for one in named] == [[0, 1, 2, 3]] * 2


def test_a_call_inside_of_itself_is_refused_with_the_circle() -> None:
    with pytest.raises(CycleDetectedError) as caught:
        rules.call_itself(1).get(timeout=20)
    assert caught.value.cycle == ["tests.rules.call_itself(x=1)"] * 2
    with pytest.raises(CycleDetectedError) as caught:
        rules.ping(3, "again").get(timeout=20)
    ping, pong = "tests.rules.ping(x=3, how='again')", "tests.rules.pong(x=3, how='again')"
    assert caught.value.cycle == [ping, pong, ping]
    assert f"{ping} -> {pong} -> {ping}" in str(caught.value)
    with pytest.raises(CycleDetectedError, match=r"data=b'xxx+\.\.\.x+'\) -> "):
        rules.large_argument_again(b"x" * 100_000).get(timeout=20)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("task", [tasks.echo, keyed.remembered], ids=["plain", "looked-up"])
@pytest.mark.parametrize("what", ["source", "item of an iterator", "item of a list"])
def test_what_breaks_a_stream_is_told_after_the_results_of_what_came_before(
    task: Any, ordered: bool, what: str, tmp_path: Path
) -> None:
    more = (0, str(tmp_path / "log")) if task is keyed.remembered else ()

    def source() -> Iterator[Any]:
        yield from ((x, *more) for x in range(100))
        if what == "source":
            raise OSError("the source is gone")
        yield ("too", "many", "arguments", "here")

    results: list[int] = []
    expected = pytest.raises(OSError, match="gone") if what == "source" else pytest.raises(TypeError, match="too many")
    with expected:
        for result in task.stream(list(source()) if what == "item of a list" else source(), ordered=ordered):
            results.append(result)
    assert sorted(results) == list(range(100))


@pytest.mark.parametrize("how", ["parallelize", "stream"])
def test_a_call_inside_of_itself_is_refused_among_others(how: str) -> None:
    with pytest.raises(CycleDetectedError, match=r"ping.* -> .*pong.* -> .*ping"):
        rules.ping(3, how).get(timeout=20)


def test_the_same_task_with_other_arguments_is_no_circle() -> None:
    assert rules.ping(4, "down").get(timeout=20) == 5
    assert rules.fibonacci(6).get(timeout=20) == 8


def test_a_call_that_repeats_itself_without_waiting_says_so(tmp_path: Path, mode: str) -> None:
    if mode == "synchronous":
        return  # There every call is waited for.
    log = tmp_path / "log"
    rules.again_until(str(log), 5).get(timeout=20)
    wait_until(lambda: log.read_text().count("ran") == 5, "it has repeated itself")


@pytest.mark.parametrize("how", ["result", "argument", "chain", "group"])
def test_a_call_that_waits_for_its_own_result_is_refused(how: str) -> None:
    with pytest.raises(CycleDetectedError, match=r"wait_for_itself.* -> .*wait_for_itself"):
        rules.wait_for_itself(how).get(timeout=20)


def test_a_call_may_hand_on_its_own_result(mode: str) -> None:
    if mode == "distributed":  # In synchronous mode what takes it would have to run before it is there.
        assert rules.wait_for_itself("others").get(timeout=20) == 9


def test_a_direct_task_returns_the_value_itself(mode: str) -> None:
    pid = keyed.where()
    assert (pid == os.getpid()) == (mode == "synchronous")
    with pytest.raises(ValueError, match="on purpose"):
        keyed.where(fails=True)
    with pytest.raises(TypeError, match="nothing"):
        keyed.where(nothing=1)  # type: ignore[call-arg]
    assert keyed.where.task().result
    assert keyed.where.__name__ == "where"
    assert keyed.where.__doc__ == "Which process ran it."
    assert repr(keyed.where) == "DirectTask(func=where)"


def test_a_direct_task_splits_its_call_and_joins_the_parts() -> None:
    assert keyed.sum_in_parts(list(range(10))) == 45
    assert keyed.sum_in_parts(list(range(10)), 100) == 445  # Once for each of the four parts.
    assert keyed.look_up([1, 2, 1], {1: 10, 2: 20}) == [10, 20, 10]
    assert keyed.look_up([], {}) == []
    assert keyed.direct_inside(9).result == 39


def test_a_direct_task_of_a_coroutine_function_is_awaited() -> None:
    async def both() -> tuple[int, int]:
        return await keyed.doubled(4), await keyed.doubled_in_parts(4)  # type: ignore[misc]

    assert asyncio.run(both()) == (8, 12)


def test_a_call_whose_arguments_cannot_be_pickled_again_makes_calls() -> None:
    assert rules.call_with_one_way(rules.OneWay()).get(timeout=20) == 9


@pytest.mark.parametrize(
    ("func", "value", "expected"),
    [
        (plain.double, 4, 8),
        (plain.remembered, 4, 4),
        (json.dumps, [1], "[1]"),
        (math.sqrt, 4.0, 2.0),
        (len, [1, 2], 2),
    ],
)
def test_a_task_may_be_made_of_any_function_of_a_module(func: Any, value: Any, expected: Any) -> None:
    app = Pynenc("plain")
    invocation = Task(app, func)(value)
    assert invocation.result == expected
    assert app.get_invocation(invocation.invocation_id).task == invocation.task
    assert list(app.task(func).parallelize([(value,)] * 2).results) == [expected] * 2
    app.close()


def test_a_task_of_a_plain_function_runs_in_an_app_like_its_own(tmp_path: Path) -> None:
    app = Pynenc("plain", config_values={"task": {"priority": 3}, "logging_level": "ERROR"})
    assert app.task(plain.told)().result == ("plain", 3, 8)
    patient = app.task(plain.busy_at_first, retry_for=(plain.Api.Busy,), max_retries=3)
    assert patient(str(tmp_path / "tries")).result == 3
    app.close()


def test_exceptions_in_a_class_are_named_by_their_path(tmp_path: Path) -> None:
    named = odd.fail_first.with_options(retry_for=["builtins.KeyError", "tests.plain.Api.Busy"], max_retries=3)
    assert named(str(tmp_path / "tries")).result == 2
    with pytest.raises(TaskError, match=r"local_error\.<locals>\.Local is not found by this name"):
        odd.fail_first.with_options(retry_for=(plain.local_error(),))


def test_direct_tasks_are_arguments(mode: str) -> None:
    assert (tasks.apply(keyed.where, 0).result != os.getpid()) == (mode == "distributed")


@pytest.mark.parametrize("what", [None, 3, b"1-2-3"])
def test_an_id_that_is_no_text_is_told_of(what: Any) -> None:
    with pytest.raises(TypeError, match="the id of an invocation is a text"):
        tasks.app.get_invocation(what)
