"""Doing things once: the result cache, named groups, and arguments that calls share, with real workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pynenc import InvocationStatus
from pynenc.exceptions import NamedGroupChangedError
from pynenc.invocation import ReusedInvocation
from tests import keyed, rules, tasks
from tests.conftest import PROJECT, configure, wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def ran(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def new_run() -> None:
    """As if the script was started again: the state directory is all that stays."""
    tasks.close()
    tasks.use_fresh_configuration()


def test_an_equal_call_is_answered_from_the_stored_result(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = keyed.remembered(1, 2, str(log))
    assert first.result == 3
    again = keyed.remembered(x=1, y=2, log="elsewhere")
    assert isinstance(again, ReusedInvocation)
    assert again.invocation_id == first.invocation_id
    assert again.result == 3
    assert keyed.remembered(2, 2, str(log)).result == 4
    assert ran(log) == [1, 2]


def test_results_are_remembered_by_a_later_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    group = keyed.remembered.parallelize([(x, 0, str(log)) for x in range(1500)])
    assert list(group.results) == list(range(1500))
    new_run()
    more = keyed.remembered.parallelize([(x, 0, str(log)) for x in range(1000, 2000)])
    assert list(more.results) == list(range(1000, 2000))
    assert Counter(ran(log)) == Counter(range(2000))
    assert [isinstance(one, ReusedInvocation) for one in more] == [True] * 500 + [False] * 500
    assert more.counts == {InvocationStatus.SUCCESS: 1000}


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ValueError, match="the first time"):
        keyed.remembered_unless_it_fails(str(log), 7).result  # noqa: B018
    assert keyed.remembered_unless_it_fails(str(log), 7).result == 7
    assert keyed.remembered_unless_it_fails(str(log), 7).result == 7
    assert ran(log) == [7, 7]


EDITED = """
from pynenc import Pynenc
app = Pynenc("edited")
@app.task(call_result_cache=True{options})
def price(x):
    return x * {factor}
"""
PRINT = "import shop; print(shop.price(10).result)"


def test_an_edited_function_is_not_answered_from_old_results(run_python) -> None:  # type: ignore[no-untyped-def]
    answers = []
    for factor, options in [(2, ""), (2, ""), (3, ""), (4, ", cache_by_source=False"), (5, ", cache_by_source=False")]:
        done = run_python({"shop.py": EDITED.format(factor=factor, options=options)}, "-c", PRINT)
        answers.append(done.out.strip() or done.err)
    assert answers == ["20", "20", "30", "40", "40"]


def test_a_named_group_is_taken_up_where_the_last_run_left_it(tmp_path: Path) -> None:
    log, fails = tmp_path / "log", tmp_path / "log.fails"
    fails.touch()
    items = [(str(log), x) for x in range(1200)]
    first = keyed.imported.parallelize(items, name="import-2026-11")
    outcomes = [one.exception for one in first]
    assert [type(one) for one in outcomes] == [type(None), ValueError] * 600
    assert Counter(ran(log)) == Counter(range(1200))

    new_run()
    second = keyed.imported.parallelize(items, name="import-2026-11")
    assert [one.exception is None for one in second] == [True, False] * 600
    assert Counter(ran(log)) == Counter({x: 1 + x % 2 for x in range(1200)})

    fails.unlink()
    new_run()
    third = keyed.imported.parallelize(items, name="import-2026-11")
    assert list(third.results) == list(range(1200))
    assert Counter(ran(log)) == Counter({x: 1 + 2 * (x % 2) for x in range(1200)})
    assert [one.invocation_id for one in third][::2] == [one.invocation_id for one in first][::2]

    new_run()
    assert list(keyed.imported.parallelize(iter(items), name="import-2026-11").results) == list(range(1200))
    assert len(ran(log)) == 2400


def test_a_named_group_attaches_to_calls_that_still_run(tmp_path: Path) -> None:
    items = [(str(tmp_path / f"begun{i}"), str(tmp_path / "gate")) for i in range(4)]
    first = tasks.begin_and_wait_for.parallelize(items, name="held")
    second = tasks.begin_and_wait_for.parallelize(items, name="held")
    assert [one.invocation_id for one in second] == [one.invocation_id for one in first]
    (tmp_path / "gate").touch()
    assert list(second.results) == list(first.results)


def test_groups_of_other_names_and_tasks_are_other_groups(tmp_path: Path) -> None:
    log = tmp_path / "log"
    items = [(str(log), x) for x in range(3)]
    for name in ["a", "b"]:
        assert list(keyed.imported.parallelize(items, name=name).results) == [0, 1, 2]
    assert list(tasks.note.parallelize(items, name="a").results)
    assert sorted(ran(log)) == sorted([0, 1, 2] * 3)


def test_changed_items_are_an_error_that_says_which(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    assert list(keyed.imported.parallelize([(log, 2 * x) for x in range(20)], name="even").results)
    changed = [(log, 100 if x in (3, 17) else 2 * x) for x in range(20)]
    with pytest.raises(NamedGroupChangedError, match=r"'even': 2 of its items \(counted from 0: 3, 17\) have other"):
        keyed.imported.parallelize(changed, name="even")
    with pytest.raises(
        NamedGroupChangedError, match=r"15 of its items \(counted from 0: 5, 6, 7, 8, 9, ...\) are missing"
    ):
        keyed.imported.parallelize([*changed[:3], (log, 6), (log, 8)], name="even")
    assert len(ran(Path(log))) == 20
    # What comes behind the items of the last run is new.
    longer = keyed.imported.parallelize([(log, 2 * x) for x in range(25)], name="even")
    assert list(longer.results) == [2 * x for x in range(25)]
    assert len(ran(Path(log))) == 25


def test_a_script_that_was_killed_goes_on_when_it_is_run_again(run_python, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    log = tmp_path / "log"
    program = (
        "import os, sys\nfrom tests import keyed, tasks\n"
        "group = keyed.imported.parallelize([(sys.argv[1], x) for x in range(0, 600, 2)], name='night')\n"
        "at = 0\n"
        "for one in group.as_completed():\n"
        "    at += 1\n"
        "    if sys.argv[2] == 'dies' and at == 50: os.kill(os.getpid(), 9)\n"
        "print(sum(group.results))\n"
    )
    for how, code in [("dies", -9), ("lives", 0)]:
        done = run_python({}, "-c", program, str(log), how, PYTHONPATH=str(PROJECT), PYNENC__APP_ID="tests")
        assert done.code == code, done.err
    assert done.out.strip() == str(sum(range(0, 600, 2)))
    assert Counter(ran(log)) == Counter(range(0, 600, 2))


def test_common_arguments_reach_every_call() -> None:
    table = {x: x * x for x in range(1000)}
    group = keyed.shared.parallelize([(x,) for x in range(1000)], common_args={"table": table})
    assert list(group.results) == [x * x for x in range(1000)]
    mixed = keyed.shared.parallelize([(1,), {"x": 2, "factor": 5}], common_args={"table": table})
    assert list(mixed.results) == [1, 20]
    assert mixed[1].arguments.kwargs == {"x": 2, "table": table, "factor": 5}


def test_a_worker_reads_common_arguments_once() -> None:
    group = keyed.id_of_shared.parallelize([(x,) for x in range(2000)], common_args={"table": list(range(10))})
    seen = set(group.results)
    assert len(seen) == len({pid for pid, _ in seen}) <= 2


def test_common_arguments_are_part_of_what_a_reused_invocation_tells(tmp_path: Path) -> None:
    held = [rules.hold(str(tmp_path / f"full{i}"), str(tmp_path / "gate")) for i in range(2)]
    for i in range(2):
        wait_until((tmp_path / f"full{i}").exists, "the workers are busy")
    one, other = (
        keyed.registered_for_user.parallelize([("ann",)], common_args={"message": text})[0] for text in ("hi", "bye")
    )
    assert isinstance(other, ReusedInvocation)
    assert other.diff_arg is not None
    assert other.diff_arg.kwargs == {"user": "ann", "message": "bye"}
    assert other.arguments.kwargs == {"user": "ann", "message": "hi"}
    (tmp_path / "gate").touch()
    assert one.result == other.result == "ann: hi"
    assert [call.result for call in held] == [None, None]


def test_common_arguments_that_do_not_fit_are_refused() -> None:
    table = {1: 1}
    with pytest.raises(TypeError, match="tabel"):
        keyed.shared.parallelize([{"x": 1, "table": table}], common_args={"tabel": table})
    with pytest.raises(TypeError, match="table is in an item and in common_args"):
        keyed.shared.parallelize([{"x": 1, "table": table}], common_args={"table": table})
    with pytest.raises(TypeError, match="binds all arguments"):
        keyed.shared.parallelize([keyed.shared.args(1, table)], common_args={"table": table})
    with pytest.raises(TypeError, match="pickle"):
        keyed.shared.parallelize([(1,)], common_args={"table": (one for one in [1])})


def test_common_arguments_count_for_keys_and_survive_worker_deaths(tmp_path: Path) -> None:
    first = keyed.table_sum.parallelize([(x,) for x in range(5)], common_args={"table": [1, 2]})
    second = keyed.table_sum.parallelize([(x,) for x in range(5)], common_args={"table": [5]})
    third = keyed.table_sum.parallelize([(x,) for x in range(5)], common_args={"table": [1, 2]})
    assert list(first.results) == list(third.results) == [3, 4, 5, 6, 7]
    assert list(second.results) == [5, 6, 7, 8, 9]
    paths = [{"path": str(tmp_path / str(i))} for i in range(4)]
    assert list(tasks.die_once.parallelize(paths, common_args={}).results)


def test_an_invocation_among_the_common_arguments_is_its_result() -> None:
    table = tasks.echo({1: 10, 2: 20})
    group = keyed.shared.parallelize([(1,), (2,)], common_args={"table": table})
    assert list(group.results) == [10, 20]


def test_a_batch_holds_as_many_calls_as_the_task_says() -> None:
    group = tasks.add.with_options(parallel_batch_size=7).parallelize([(x, 1) for x in range(50)])
    places = Counter(tuple(one.invocation_id.split("-")[:2]) for one in group)
    assert sorted(places.values()) == [1] + [7] * 7
    assert list(group.results) == list(range(1, 51))


def test_a_task_streams_calls_that_are_looked_up_with_one_worker_and_no_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, NUM_WORKERS=1, CONFIGRUNNER__SPARE_WORKERS=0)
    assert keyed.stream_remembered(str(tmp_path / "log"), 40).get(timeout=20) == list(range(40))
