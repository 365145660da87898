"""Tasks that fork: the child ends where its call ends, and the worker goes on as if there had been none.

| the child | its exit code |
| --- | --- |
| returns from the task | 0 |
| `sys.exit()`, `sys.exit(0)` | 0 |
| `sys.exit(3)` | 3 |
| `sys.exit("words")` | 1, and the words are printed |
| raises anything else | 1, and the traceback is printed |
| `os._exit(5)` | 5 |
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import forking, tasks
from tests.conftest import Finished, configure, wait_until

CODES = {
    "return": 0,
    "return large": 0,
    "return what cannot be pickled": 0,
    "exit": 0,
    "exit None": 0,
    "exit 3": 3,
    "exit words": 1,
    "raise": 1,
    "raise ValueError": 1,
    "os._exit": 5,
}
KINDS = [forking.fork, forking.fork_in_coroutine, forking.fork_in_one_of_many_threads]
KINDS_AMONG_MANY = [forking.fork_at, forking.fork_at_in_coroutine, forking.fork_at_in_thread]
COUNT = 600
FORKS_AT = [0, 300, COUNT - 1]
"""The last one may be the last of its lease."""

pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.shares_supervisor]


@pytest.fixture(params=[1, 2], autouse=True)
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    configure(monkeypatch, NUM_WORKERS=count)
    return count


def worker_pids() -> set[int]:
    report = tasks.app.report()
    assert report is not None
    return {worker["pid"] for worker in report["workers"] if not worker["concurrent"]}


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.func.__name__)
def test_a_child_ends_with_its_call_and_with_the_code_that_python_gives(task: Any) -> None:
    codes = {how: task(how).get(timeout=30) for how in CODES}
    assert codes == CODES
    assert tasks.add(1, 2).get(timeout=30) == 3


@pytest.mark.parametrize("how", ["exit", "exit 3", "return", "raise"])
@pytest.mark.parametrize("task", KINDS_AMONG_MANY, ids=lambda task: task.func.__name__)
def test_a_child_in_the_middle_of_many_calls_runs_none_of_them(task: Any, how: str, tmp_path: Path) -> None:
    for fatal in FORKS_AT:
        ledger = tmp_path / f"ledger-{fatal}"
        group = task.parallelize([(x, fatal, how, str(ledger)) for x in range(COUNT)])
        assert list(group.results) == list(range(COUNT))
        assert Counter(ledger.read_text().split()) == Counter(map(str, range(COUNT)))


def test_a_child_of_a_call_that_runs_on_top_of_another_ends_before_that_goes_on(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    total = forking.sum_of_those_that_fork(100, 50, "exit", str(ledger))
    assert total.get(timeout=30) == sum(range(100))
    assert Counter(ledger.read_text().split()) == Counter(map(str, range(100)))


@pytest.mark.parametrize("how", ["return", "exit 3", "raise", "raise ValueError", "os._exit"])
def test_a_child_of_a_coroutine_beside_the_calls_own_ends_with_that_coroutine(how: str) -> None:
    assert forking.fork_beside_the_call(how).get(timeout=30) == CODES[how]


def test_a_child_that_awaits_on_its_parents_loop_ends_and_no_call_goes_on_in_it(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    assert list(forking.fork_and_await.parallelize([(str(ledger),)] * 10).results) == [1] * 10
    assert ledger.read_text().split() == ["here"] * 10


def test_a_child_that_comes_to_be_when_a_result_is_pickled_ends_there() -> None:
    assert forking.return_what_forks().get(timeout=30) == "parent"


def test_a_child_of_a_thread_of_the_call_ends_with_that_thread() -> None:
    assert list(forking.fork_in_thread_of_call.parallelize([(x,) for x in range(20)]).results) == list(range(20))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (forking.call_in_child, lambda x: 10 * x + 45),
        (forking.call_in_child_of_thread, lambda x: 10 * x + 45),
        (forking.call_in_child_of_coroutine, lambda x: x + 1),
        (forking.call_in_process_of_multiprocessing, lambda x: (10 * x + 45, 0)),
    ],
    ids=["fork", "thread", "coroutine", "multiprocessing"],
)
def test_children_call_tasks_and_wait_for_them(task: Any, expected: Any) -> None:
    assert list(task.parallelize([(x,) for x in range(8)]).results) == [expected(x) for x in range(8)]


@pytest.mark.parametrize(
    "task", [forking.raise_what_forks, forking.raise_what_forks_in_coroutine, forking.raise_what_forks_in_thread]
)
def test_a_child_that_an_exception_forks_ends_too(task: Any) -> None:
    assert repr(task().exception) == "ValueError('parent')"
    assert tasks.add(1, 2).get(timeout=30) == 3


def test_a_child_that_leaves_in_a_coroutine_beside_its_call_has_the_exit_code_of_a_script() -> None:
    assert forking.fork_beside_coroutine().get(timeout=30) == 3


def test_a_child_of_a_child_calls_tasks_and_its_parent_ends_with_its_call() -> None:
    assert forking.call_in_grandchild(1).get(timeout=30) == 0


def test_a_worker_goes_on_after_its_call_has_forked(workers: int) -> None:
    assert tasks.add(1, 2).get(timeout=30) == 3
    wait_until(lambda: len(worker_pids()) == workers, "all workers are there, and no spare ones")
    before = worker_pids()
    assert forking.fork("exit 3").get(timeout=30) == 3
    assert worker_pids() == before
    assert all(not psutil.Process(pid).children() for pid in before)


def test_what_a_child_prints_and_raises_is_seen_where_its_script_prints(run_python: Any) -> None:
    module = (
        "import os, sys\nfrom pynenc import Pynenc\napp = Pynenc()\n"
        "@app.task\ndef forks(how: str) -> int:\n"
        "    child = os.fork()\n"
        "    if child:\n        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    sys.stdout.write('printed without an end of line')\n"
        "    raise {'words': SystemExit('words of the child'), 'error': KeyError('unexpected')}[how]\n"
    )
    script = "from forks import *\nprint([forks(how).result for how in ('words', 'error')])\n"
    finished: Finished = run_python({"forks.py": module, "script.py": script}, "script.py")
    assert "[1, 1]" in finished.out
    assert finished.out.count("printed without an end of line") == 2
    assert "words of the child\n" in finished.err
    assert "KeyError: 'unexpected'" in finished.err
    assert "line 10, in forks" in finished.err
