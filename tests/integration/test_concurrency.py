"""Which calls run beside which, and which are registered at all, with real workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pynenc import ConcurrencyControlType, InvocationStatus
from pynenc.exceptions import (
    InvalidTaskOptionsError,
    InvocationCancelledError,
    InvocationConcurrencyWithDifferentArgumentsError,
    InvocationControlledError,
)
from pynenc.invocation import ReusedInvocation
from tests import keyed, rules, tasks
from tests.conftest import PROJECT, configure, wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


def appears(path: Path) -> None:
    wait_until(path.exists, f"{path.name} is there")


def fill_the_workers(place: Path) -> tuple[object, ...]:
    """Occupy both workers until the second gate opens."""
    calls = tuple(rules.hold(str(place / f"full{i}"), str(place / "second-gate")) for i in range(2))
    for i in range(2):
        appears(place / f"full{i}")
    return calls


def test_a_call_that_may_not_run_beside_another_waits_while_others_pass_it(place: Path) -> None:
    first = keyed.one_at_a_time(str(place), "first")
    appears(place / "first")
    second = keyed.one_at_a_time(str(place), "second")
    assert list(tasks.add.parallelize([(x, 1) for x in range(20)]).results) == list(range(1, 21))
    assert not (place / "second").exists()
    assert second.status in (InvocationStatus.CONCURRENCY_CONTROLLED, InvocationStatus.PENDING)
    (place / "gate").touch()
    assert (first.result, second.result) == ("first", "second")


def test_at_most_max_running_calls_run_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=4)
    group = keyed.two_at_a_time.parallelize([(str(place), str(i)) for i in range(6)])
    wait_until(lambda: len(list(place.iterdir())) == 2, "two run")
    assert tasks.add(1, 1).result == 2
    assert len(list(place.iterdir())) == 2
    (place / "gate").touch()
    assert list(group.results) == [str(i) for i in range(6)]


def test_calls_are_the_same_by_the_values_of_their_arguments_however_they_are_written(place: Path) -> None:
    here = str(place)
    first = keyed.one_of_each(here)
    appears(place / "x")
    same = [
        keyed.one_of_each(here, "x"),
        keyed.one_of_each(name="x", directory=here),
        keyed.one_of_each(here, times=1, name="x"),
    ]
    other = keyed.one_of_each(here, "other")
    appears(place / "other")
    assert tasks.app.get_invocation(first.invocation_id).status is InvocationStatus.RUNNING
    assert (place / "log").read_text().count("\n") == 2
    (place / "gate").touch()
    for call in [first, *same, other]:
        assert call.result is None
    assert (place / "log").read_text().count("\n") == 5


def test_thousands_of_blocked_calls_run_one_by_one_for_each_key(place: Path) -> None:
    hosts = [f"host{i % 3}" for i in range(3000)]
    group = keyed.per_host.parallelize([(str(place), host, page) for page, host in enumerate(hosts)])
    assert list(group.results) == list(range(3000))
    for host in set(hosts):
        pages = [int(page) for page in (place / f"{host}-log").read_text().split()]
        assert sorted(pages) == pages == [page for page, one in enumerate(hosts) if one == host]


def test_a_call_that_is_not_to_wait_for_its_turn_ends_with_a_status_of_its_own(place: Path) -> None:
    first = keyed.one_or_none(str(place), "first")
    appears(place / "first")
    others = keyed.one_or_none.parallelize([(str(place), f"{i}") for i in range(3)])
    for other in others:
        with pytest.raises(InvocationControlledError, match=other.invocation_id):
            other.get(timeout=20)
        assert other.status is InvocationStatus.CONCURRENCY_CONTROLLED_FINAL
        assert other.history[-1].status == "CONCURRENCY_CONTROLLED_FINAL"
    (place / "gate").touch()
    assert first.result == "first"
    assert keyed.one_or_none(str(place), "again").result == "again"


@pytest.mark.parametrize("how", ["fail", "die"])
def test_a_key_is_free_again_when_its_call_fails_or_its_worker_dies(place: Path, how: str) -> None:
    first = keyed.alone_or_die.with_options(max_worker_losses=0)(str(place), how)
    if how == "die":
        appears(place / "held")
    second = keyed.alone_or_die(str(place), "well")
    (place / "gate").touch()
    assert second.get(timeout=30) == "well"
    assert first.exception is not None


def test_a_call_that_is_tried_again_lets_others_of_its_key_run(place: Path) -> None:
    group = keyed.alone_and_again.parallelize([(str(place), str(i)) for i in range(20)])
    assert list(group.results) == [2] * 20


def test_a_blocked_call_is_cancelled_and_the_next_takes_its_turn(place: Path) -> None:
    first = keyed.one_at_a_time(str(place), "first")
    appears(place / "first")
    second, third = keyed.one_at_a_time(str(place), "second"), keyed.one_at_a_time(str(place), "third")
    wait_until(lambda: third.status is InvocationStatus.CONCURRENCY_CONTROLLED, "the third is blocked")
    second.cancel()
    (place / "gate").touch()
    assert third.get(timeout=30) == "third"
    assert first.result == "first"
    with pytest.raises(InvocationCancelledError):
        second.result  # noqa: B018
    assert not (place / "second").exists()


def test_a_running_call_is_cancelled_by_force_and_its_key_is_free(place: Path) -> None:
    first = keyed.one_at_a_time(str(place), "first")
    appears(place / "first")
    second = keyed.one_at_a_time(str(place), "second")
    first.cancel(force=True)
    appears(place / "second")
    (place / "gate").touch()
    assert second.result == "second"
    with pytest.raises(InvocationCancelledError):
        first.result  # noqa: B018


@pytest.mark.parametrize("workers", [1, 2])
def test_a_call_that_waits_for_one_of_its_own_key_lets_it_run(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, NUM_WORKERS=workers)
    assert keyed.alone_with_children(5).get(timeout=30) == 5


def test_a_call_like_one_that_waits_is_not_registered_again(place: Path) -> None:
    full = fill_the_workers(place)
    first = keyed.registered_for_arguments(1)
    again = [
        keyed.registered_for_arguments(1, 0),
        keyed.registered_for_arguments(y=0, x=1),
        keyed.registered_for_arguments(x=1),
    ]
    other = keyed.registered_for_arguments(2)
    assert not isinstance(first, ReusedInvocation)
    assert not isinstance(other, ReusedInvocation)
    for one in again:
        assert isinstance(one, ReusedInvocation)
        assert one.invocation_id == first.invocation_id
        assert one.diff_arg is None
    (place / "second-gate").touch()
    assert [one.result for one in [first, *again, other]] == [1, 1, 1, 1, 2]
    after = keyed.registered_for_arguments(1)
    assert after.invocation_id != first.invocation_id
    assert after.result == 1
    assert len(full) == 2


def test_a_reused_invocation_says_which_arguments_differ(place: Path) -> None:
    fill_the_workers(place)
    first = keyed.registered_for_user("ann", "hello")
    other = keyed.registered_for_user("ann", "bye")
    assert isinstance(other, ReusedInvocation)
    assert other.diff_arg is not None
    assert other.diff_arg.kwargs == {"user": "ann", "message": "bye"}
    assert other.arguments.kwargs == {"user": "ann", "message": "hello"}
    anything = [keyed.registered_once(x) for x in range(3)]
    assert len({one.invocation_id for one in anything}) == 1
    (place / "second-gate").touch()
    assert other.result == first.result == "ann: hello"
    assert [one.result for one in anything] == [0, 0, 0]


def test_other_arguments_under_the_same_key_raise_where_that_is_asked_for(place: Path) -> None:
    fill_the_workers(place)
    first = keyed.registered_or_error("ann", "hello")
    assert keyed.registered_or_error("ann", "hello").invocation_id == first.invocation_id
    with pytest.raises(InvocationConcurrencyWithDifferentArgumentsError) as caught:
        keyed.registered_or_error("ann", "bye")
    assert "'hello'" in str(caught.value)
    assert "'bye'" in str(caught.value)
    assert first.invocation_id in str(caught.value)
    (place / "second-gate").touch()
    assert first.result == "ann: hello"


def test_equal_items_of_one_group_are_one_call(place: Path) -> None:
    fill_the_workers(place)
    alone = keyed.registered_for_arguments(3)
    group = keyed.registered_for_arguments.parallelize([(x % 5,) for x in range(1200)])
    ids = [one.invocation_id for one in group]
    assert len(set(ids)) == 5
    assert ids[3] == alone.invocation_id
    assert [isinstance(one, ReusedInvocation) for one in group][:6] == [False, False, False, True, False, True]
    (place / "second-gate").touch()
    assert list(group.results) == [x % 5 for x in range(1200)]
    assert sorted(one.result for one in group.as_completed()) == sorted(x % 5 for x in range(1200))


def test_a_program_sees_what_another_has_registered(place: Path, run_python) -> None:  # type: ignore[no-untyped-def]
    fill_the_workers(place)
    first = keyed.registered_for_user("ann", "hello")
    first.status  # noqa: B018 - It has arrived.
    program = "from tests import keyed\nprint(keyed.registered_for_user('ann', 'hello').invocation_id)\n"
    done = run_python({}, "-c", program, PYTHONPATH=str(PROJECT), PYNENC__APP_ID="tests")
    assert done.out.strip() == first.invocation_id, done.err
    (place / "second-gate").touch()
    assert first.result == "ann: hello"


def test_options_that_do_not_fit_the_function_are_named() -> None:
    with pytest.raises(InvalidTaskOptionsError, match="has no parameter 'hots', only 'directory', 'host', 'page'"):
        keyed.per_host.with_options(key_arguments=("hots",))
    with pytest.raises(InvalidTaskOptionsError, match="KEYS needs the names"):
        tasks.add.with_options(running_concurrency=ConcurrencyControlType.KEYS)
    with pytest.raises(InvalidTaskOptionsError, match="running_concurrency: expected"):
        tasks.add.with_options(running_concurrency="sometimes")


def test_a_call_whose_worker_died_comes_before_those_that_wait_for_its_key(place: Path) -> None:
    first = keyed.one_of_each(str(place))
    appears(place / "x")
    second = keyed.one_of_each(str(place))
    log = place / "log"
    os.kill(int(log.read_text()), signal.SIGKILL)
    wait_until(lambda: log.read_text().count("\n") == 2, "a call of the key runs again")
    assert tasks.add(1, 1).result == 2
    assert log.read_text().count("\n") == 2
    (place / "gate").touch()
    assert first.get(timeout=30) is second.get(timeout=30) is None
    assert log.read_text().count("\n") == 3


def test_a_key_is_shared_by_calls_that_run_one_by_one_and_side_by_side(place: Path) -> None:
    """The same task, once with threads: its calls run in workers of two kinds, and still never at once."""
    threaded = keyed.per_host.with_options(threads_per_worker=2)
    calls = [task(str(place), "host", page) for page in range(30) for task in (keyed.per_host, threaded)]
    assert [call.get(30) for call in calls] == [page for page in range(30) for _ in range(2)]
    assert len((place / "host-log").read_text().split()) == 60
