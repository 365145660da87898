"""Invocations as arguments: calls that wait for the results of others, with real workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pynenc import InvocationStatus
from pynenc.exceptions import DependencyError, InvocationCancelledError
from pynenc.invocation import DistributedInvocation, DistributedInvocationGroup
from tests import keyed, rules, tasks
from tests.conftest import PROJECT, configure, wait_until

pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.shares_supervisor]


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    configure(monkeypatch, NUM_WORKERS=request.param)
    return int(request.param)


@pytest.mark.usefixtures("workers")
def test_a_call_receives_the_result_of_the_invocation_that_it_was_given() -> None:
    three = tasks.add(1, 2)
    assert keyed.plus(three, 4).result == 7
    assert keyed.plus(three, three).result == 6
    assert keyed.plus(x=three, y=keyed.plus(three, 1)).result == 7


@pytest.mark.usefixtures("workers")
def test_results_stand_wherever_invocations_were_inside_of_arguments() -> None:
    one, two = tasks.add(1, 0), tasks.echo([1, 2])
    assert keyed.see((one, [two, {"key": one}])).result == "(1, [[1, 2], {'key': 1}])"
    assert keyed.total_of([one, 5, one], more={"a": one}).result == 8


@pytest.mark.usefixtures("workers")
def test_a_group_is_the_list_of_its_results() -> None:
    squares = rules.square.parallelize([(x,) for x in range(1000)])
    assert keyed.total_of(squares).result == sum(x * x for x in range(1000))
    assert keyed.see({"all": tasks.add.parallelize([(1, 1), (2, 2)])}).result == "{'all': [2, 4]}"
    assert keyed.see(tasks.add.parallelize([])).result == "[]"


@pytest.mark.usefixtures("workers")
def test_items_of_a_group_may_be_invocations() -> None:
    firsts = tasks.add.parallelize([(x, 1) for x in range(700)])
    seconds = tasks.add.parallelize([(first, 1) for first in firsts])
    assert list(seconds.results) == [x + 2 for x in range(700)]


@pytest.mark.usefixtures("workers")
def test_a_diamond_of_ten_thousand_calls() -> None:
    root = tasks.add(1, 0)
    middle = tasks.add.parallelize([(root, x) for x in range(10_000)])
    assert keyed.total_of(middle).get(timeout=50) == sum(range(10_000)) + 10_000


@pytest.mark.usefixtures("workers")
def test_results_that_are_there_already_are_taken_from_what_is_stored() -> None:
    done = tasks.add.parallelize([(x, 0) for x in range(20)])
    assert list(done.results) == list(range(20))
    assert keyed.plus(done[3], done[4]).result == 7
    assert keyed.total_of(done).result == 190
    found = tasks.app.get_invocation(done[5].invocation_id)
    assert keyed.plus(found, 1).result == 6


def test_results_can_be_changed_without_others_seeing_it() -> None:
    items = tasks.echo([1])
    assert [one.result for one in (tasks.append_to(items), tasks.append_to(items), tasks.append_to(items))] == [
        [1, 1]
    ] * 3


@pytest.mark.usefixtures("workers")
def test_a_long_chain() -> None:
    last = keyed.plus(0, 0)
    for _ in range(300):
        last = keyed.plus(last, 1)
    assert last.get(timeout=50) == 300


@pytest.mark.usefixtures("workers")
def test_calls_inside_of_tasks_have_dependencies_too() -> None:
    assert keyed.chain_inside(30).get(timeout=50) == 30


def test_a_call_that_waits_for_a_result_has_not_begun_and_takes_no_worker(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = rules.hold(str(tmp_path / "begun"), str(gate))
    waiting = [keyed.see([held]) for _ in range(5)]
    assert tasks.add(1, 1).result == 2
    assert {one.status for one in waiting} == {InvocationStatus.REGISTERED}
    gate.touch()
    assert [one.result for one in waiting] == ["[None]"] * 5


@pytest.mark.usefixtures("workers")
def test_a_failure_fails_all_that_depend_on_it_and_is_named_by_each() -> None:
    bad = keyed.fail_because("no flour")
    dough = keyed.plus(bad, 1)
    bread = keyed.plus([dough], [2])
    group = tasks.add.parallelize([(bread, x) for x in range(3)])
    for dependent in [dough, bread, *group]:
        with pytest.raises(DependencyError) as caught:
            dependent.get(timeout=20)
        assert bad.invocation_id in str(caught.value)
        assert dependent.invocation_id in str(caught.value)
        assert "no flour" in str(caught.value)
        assert dependent.status is InvocationStatus.FAILED
    with pytest.raises(ValueError, match="no flour"):
        bad.result  # noqa: B018


def test_a_failure_that_is_there_already_fails_what_comes_to_depend_on_it() -> None:
    group = tasks.fail_odd.parallelize([(x,) for x in range(4)])
    assert [type(one.exception) for one in group] == [type(None), ValueError, type(None), ValueError]
    with pytest.raises(DependencyError, match=group[1].invocation_id):
        keyed.total_of(group).result  # noqa: B018
    assert keyed.plus(group[0], group[2]).result == 2


def test_cancelling_a_call_fails_what_depends_on_it(tmp_path: Path) -> None:
    held = [rules.hold(str(tmp_path / f"begun{i}"), str(tmp_path / "gate")) for i in range(3)]
    wait_until((tmp_path / "begun1").exists, "both workers are busy")
    dependent = keyed.see(held[2])
    held[2].cancel()
    with pytest.raises(DependencyError, match=held[2].invocation_id):
        dependent.get(timeout=20)
    (tmp_path / "gate").touch()
    with pytest.raises(InvocationCancelledError):
        held[2].result  # noqa: B018


def test_a_dependent_is_cancelled_while_it_waits(tmp_path: Path) -> None:
    held = rules.hold(str(tmp_path / "begun"), str(tmp_path / "gate"))
    dependent = keyed.see(held)
    behind = keyed.see(dependent)
    dependent.cancel()
    with pytest.raises(InvocationCancelledError):
        dependent.get(timeout=20)
    with pytest.raises(DependencyError, match=dependent.invocation_id):
        behind.get(timeout=20)
    (tmp_path / "gate").touch()
    assert held.result is None


def test_a_retry_of_what_others_depend_on_is_waited_for(tmp_path: Path) -> None:
    flaky = rules.fail_at_first(str(tmp_path / "log"), 2)
    assert keyed.plus(flaky, 10).result == 12


def test_a_worker_that_dies_does_not_lose_what_depends_on_its_call(tmp_path: Path) -> None:
    pid = tasks.worker_pid()
    first = tasks.begin_and_wait_for(str(tmp_path / "begun"), str(tmp_path / "gate"))
    dependents = tasks.add.parallelize([(pid, x) for x in range(50)])
    last = keyed.see([first, dependents])
    wait_until((tmp_path / "begun").exists, "the call runs")
    os.kill(pid.result, signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert list(dependents.results) == [pid.result + x for x in range(50)]
    assert last.get(timeout=30).endswith(f"{pid.result + 49}]]")


def test_arguments_of_a_dependent_show_its_invocations() -> None:
    first = tasks.add(1, 2)
    group = tasks.add.parallelize([(1, 1)])
    dependent = keyed.plus(first, group)
    seen = dependent.arguments.kwargs
    assert isinstance(seen["x"], DistributedInvocation)
    assert seen["x"].invocation_id == first.invocation_id
    assert isinstance(seen["y"], DistributedInvocationGroup)
    assert [one.invocation_id for one in seen["y"]] == [group[0].invocation_id]
    wait_until(lambda: dependent.status.is_final, "it has ended")


def test_another_program_passes_on_what_this_one_has_made(run_python) -> None:  # type: ignore[no-untyped-def]
    first = tasks.add(20, 1)
    program = (
        "import sys\nfrom tests import keyed, tasks\nfirst = tasks.app.get_invocation(sys.argv[1])\n"
        "print(keyed.plus(first, first).result)\n"
    )
    done = run_python({}, "-c", program, first.invocation_id, PYTHONPATH=str(PROJECT), PYNENC__APP_ID="tests")
    assert done.out.strip() == "42", done.err
