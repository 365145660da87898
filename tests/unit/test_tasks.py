"""What makes a task, and how it travels."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pynenc import InvalidTaskOptionsError, Pynenc, PynencBuilder, RetryError, Task
from pynenc.arguments import Arguments
from pynenc.call import Call
from pynenc.conf.config_task import ConfigTask
from pynenc.exceptions import (
    InvocationError,
    InvocationNotFoundError,
    TaskError,
    WorkerLostError,
    WorkerTraceback,
)
from tests import keyed, plain, tasks
from tests.conftest import PROJECT


def test_a_task_shows_itself_and_its_function() -> None:
    assert str(tasks.add) == repr(tasks.add) == "Task(func=add)"
    assert tasks.add.task_id == "tests.tasks.add"
    assert tasks.add.func(1, 2) == 3
    assert tasks.app.tasks["tests.tasks.add"] is tasks.add
    assert tasks.app.get_task("tests.tasks.add") is tasks.add
    assert isinstance(tasks.add.conf, ConfigTask)


def test_nested_functions_lambdas_and_methods_are_refused() -> None:
    def nested() -> None: ...

    class Holder:
        def method(self) -> None: ...

    for func in (nested, lambda: None, Holder.method):
        with pytest.raises(ValueError, match="cannot be a task"):
            tasks.app.task(func)
    with pytest.raises(ValueError, match="made from a function"):
        tasks.app.task(partial(print, 1))


def test_builtins_that_do_not_tell_their_parameters_are_refused() -> None:
    for func in (int, dict, max):
        with pytest.raises(
            ValueError, match=rf"builtins\.{func.__name__} cannot be a task: it does not tell its parameters"
        ):
            tasks.app.task(func)
    assert tasks.app.get_task("math.sqrt").func is math.sqrt
    for name in ("tests.plain.Api.Busy", "tests.tasks.app"):
        with pytest.raises(TaskError, match="it is not a task"):
            tasks.app.get_task(name)


def test_options_may_name_classes_that_lie_in_a_class() -> None:
    task = Task(tasks.app, plain.double, {"retry_for": (plain.Api.Busy,)})
    for copy in (Task.from_json(tasks.app, task.to_json()), pickle.loads(pickle.dumps(task))):
        assert copy.options == {"retry_for": (plain.Api.Busy,)}
    by_name = Task(tasks.app, plain.double, {"retry_for": "tests.plain.Api.Busy, KeyError"})
    assert by_name.conf.retry_for == (plain.Api.Busy, KeyError)
    local = Task(tasks.app, plain.double, {"retry_for": (plain.local_error(),)})
    with pytest.raises(TaskError, match=r"tests\.plain\.local_error\.<locals>\.Local is not found by this name"):
        local.to_json()
    gone = task.to_json().replace("Api.Busy", "Api.Gone")
    with pytest.raises(
        TaskError, match=r"its options cannot be read here: there is no exception class tests\.plain\.Api\.Gone"
    ):
        Task.from_json(tasks.app, gone)


PROGRAMS = {
    "with a main section": "if __name__ == '__main__':\n    print('not reached')\n",
    "without a main section": "",
}


@pytest.mark.parametrize("ending", PROGRAMS.values(), ids=PROGRAMS.keys())
@pytest.mark.parametrize("arguments", [["script.py"], ["-m", "script"], ["-c", "exec(open('script.py').read())"]])
def test_a_task_of_the_main_program_is_refused(tmp_path: Path, ending: str, arguments: list[str]) -> None:
    script = "from pynenc import Pynenc\napp = Pynenc()\n@app.task\ndef f(): ...\n" + ending
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert "pynenc run script.py" in done.stderr
    assert "importable" in done.stderr
    assert not (tmp_path / ".pynenc").exists()


def test_all_invalid_options_are_told_at_once() -> None:
    with pytest.raises(InvalidTaskOptionsError) as raised:
        Task(tasks.app, tasks.add.func, {"max_retry": 3, "max_retries": -1})
    assert len(raised.value.problems) == 2
    assert "'max_retries'" in str(raised.value)


def test_a_task_goes_through_json_and_pickle_with_its_options() -> None:
    options = {"retry_for": (ValueError, OSError), "max_retries": 3}
    task = Task(tasks.app, tasks.add.func, options)
    for copy in (Task.from_json(tasks.app, task.to_json()), pickle.loads(pickle.dumps(task))):
        assert copy.func is tasks.add.func
        assert copy.options == options
        assert copy == task
        assert copy.app is tasks.app
    task_id, func, found = Task._from_json(task.to_json())
    assert (task_id, func, found) == ("tests.tasks.add", tasks.add.func, options)


def test_a_task_whose_function_is_gone_is_told_of() -> None:
    gone = tasks.add.to_json().replace("tests.tasks.add", "tests.tasks.nothing")
    with pytest.raises(TaskError, match=r"tests\.tasks\.nothing"):
        Task.from_json(tasks.app, gone)
    with pytest.raises(TaskError, match="nowhere"):
        tasks.app.get_task("nowhere.at_all")


def test_retry_error_is_always_retriable() -> None:
    assert tasks.add.retriable_exceptions == (RetryError,)
    assert Task(tasks.app, tasks.add.func, {"retry_for": (KeyError,)}).retriable_exceptions == (KeyError, RetryError)


def test_records_carry_the_task(caplog: pytest.LogCaptureFixture) -> None:
    tasks.add.logger.warning("hello")
    assert caplog.records[0].task_id == "tests.tasks.add"  # type: ignore[attr-defined]
    assert caplog.records[0].invocation_id is None  # type: ignore[attr-defined]
    assert caplog.records[0].getMessage() == "[tests.tasks.add] hello"


def test_arguments_are_equal_however_the_call_was_written() -> None:
    one, two = tasks.add.args(1), tasks.add.args(y=0, x=1)
    assert one == two
    assert hash(one) == hash(two)
    assert one.args_id == two.args_id
    assert one != tasks.add.args(1, 1)
    assert Arguments() == Arguments({})
    assert Arguments({"a": {"x": 1, "y": 2}}) == Arguments({"a": {"y": 2, "x": 1}})
    assert Arguments({"a": {1, 2, 300}}) == Arguments({"a": {300, 2, 1}})


def test_arrays_count_by_their_items_however_these_lie_in_memory() -> None:
    array = np.arange(12.0).reshape(3, 4)
    read_only = array.copy()
    read_only.flags.writeable = False
    equal = [np.asfortranarray(array), np.arange(24.0).reshape(3, 8)[:, ::2] / 2, read_only]
    assert {Arguments({"a": one}).args_id for one in equal} == {Arguments({"a": array}).args_id}
    for other in (array.reshape(4, 3), array.astype("f4"), array + 1):
        assert Arguments({"a": other}) != Arguments({"a": array})
    for kind in ("M8[s]", "S3", "U4", "O", "?", [("a", "i4"), ("b", "O")]):
        of_kind = np.zeros((2, 3), kind)
        assert Arguments({"a": [of_kind]}) == Arguments({"a": [np.asfortranarray(of_kind)]})
    assert Arguments({"a": np.zeros((0, 3))}) == Arguments({"a": np.zeros((0, 3))})


def test_arguments_that_cannot_be_pickled_equal_those_with_the_same_objects() -> None:
    lock = threading.Lock()
    one, two = Arguments({"lock": lock}), Arguments({"lock": lock})
    assert one == one
    assert one == two
    assert hash(one) == hash(two)
    assert one != Arguments({"lock": threading.Lock()})
    assert one != Arguments({"lock": 1})


@dataclasses.dataclass
class Tagged:
    """Has a set where a pickle takes it as it comes, and parts that may be one object or two."""

    tags: set[str]
    first: str
    second: str


def tagged_digest(is_one_object: bool) -> str:
    text = "some text"
    again = text if is_one_object else "".join(["some ", "text"])
    return Arguments({"one": Tagged({f"tag {x}" for x in range(50)}, text, again), "many": [text, again]}).args_id


def test_digests_are_the_same_in_every_process_and_whichever_parts_are_one_object() -> None:
    program = "from tests.unit.test_tasks import tagged_digest; print(tagged_digest({}))"
    found = [
        subprocess.run(
            [sys.executable, "-c", program.format(seed == 1)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in (1, 2)
    ]
    assert set(found) == {tagged_digest(True)} == {tagged_digest(False)}


def test_arguments_that_contain_themselves_can_be_compared() -> None:
    def turning(start: int) -> Arguments:
        circle: list[object] = [start]
        circle.append(circle)
        knot: dict[str, object] = {"at": start}
        knot["again"] = [knot, {"knot": knot}]
        return Arguments({"circle": circle, "knot": knot})

    assert turning(1) == turning(1) != turning(2)


def test_a_call_goes_through_json() -> None:
    call = Call(tasks.add, tasks.add.args(1, y=2))
    assert Call.from_json(tasks.app, call.to_json()) == call
    assert call.call_id.startswith("tests.tasks.add#")


def test_apps_are_one_per_id_and_travel() -> None:
    app = Pynenc("travels", config_values={"num_workers": 3})
    assert pickle.loads(pickle.dumps(app)) is app
    others = [Pynenc("travels", config_values={"num_workers": 4}), Pynenc("travels"), Pynenc("travels")]
    for one in (app, *others):
        assert pickle.loads(pickle.dumps(Task(one, plain.double))).app is one
    assert PynencBuilder().app_id("built").num_workers(1).dev_mode().build().conf.force_sync


def test_the_environment_has_the_last_word_on_the_id_of_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__APP_ID", "said_outside")
    app = Pynenc("said_here")
    assert app.app_id == app.conf.app_id == "said_outside"


@pytest.mark.parametrize(
    "error",
    [
        InvalidTaskOptionsError("m.f", ["a", "b"]),
        InvocationError("1-2-3", "why"),
        InvocationNotFoundError("1-2-3", "why"),
        WorkerLostError("1-2-3", "why"),
        WorkerTraceback("text"),
    ],
)
def test_errors_go_through_pickle(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_importing_costs_little() -> None:
    """Not a timed test: the modules that are slow to import are not imported."""
    slow = [
        "asyncio",
        "logging",
        "inspect",
        "sqlite3",
        "subprocess",
        "cloudpickle",
        "psutil",
        "rich",
        "tomllib",
        "socket",
    ]
    program = f"import sys, pynenc; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_other_systems_are_told_at_import() -> None:
    program = "import sys; sys.platform = 'win32'; import pynenc"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: pynenc runs on Linux and macOS" in done.stderr


def test_a_direct_task_cannot_join_what_it_does_not_split() -> None:
    with pytest.raises(ValueError, match="aggregate_func joins the results of the parts that parallel_func makes"):
        tasks.app.direct_task(aggregate_func=sum)(keyed.per_host.func)
    with pytest.raises(InvalidTaskOptionsError, match="max_retry"):
        tasks.app.direct_task(max_retry=1)(keyed.per_host.func)


def test_a_direct_task_travels_as_its_task() -> None:
    task = pickle.loads(pickle.dumps(keyed.where.task))
    assert task == keyed.where.task
    assert task.func is keyed.where.func
    assert tasks.app.get_task("tests.keyed.where") is keyed.where.task
    assert pickle.loads(pickle.dumps(keyed.where)) is keyed.where
    unnamed = tasks.app.direct_task(plain.double, parallel_func=keyed.per_host)
    copy = pickle.loads(pickle.dumps(unnamed))
    assert copy.task == unnamed.task
    assert (copy._split, copy._join) == (unnamed._split, unnamed._join)
