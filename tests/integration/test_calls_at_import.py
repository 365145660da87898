"""Calls that modules make while they are imported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Finished, all_gone, wait_until

RunPython = Callable[..., Finished]

HEAD = """
import os
from pynenc import Pynenc
app = Pynenc(config_values={"num_workers": 2})

@app.task
def double(x):
    return 2 * x
"""


@pytest.mark.parametrize(
    "call", ["double(1).result", "list(double.parallelize([(1,)]).results)", "list(double.stream([(1,)]))"]
)
def test_a_call_at_the_import_of_its_own_module_is_told_of_once(run_python: RunPython, call: str) -> None:
    files = {"tasks.py": HEAD + f"open('imports', 'a').write('.')\n{call}\n", "script.py": "import tasks\n"}
    files["count.py"] = "print(len(open('imports').read()))"
    finished = run_python(files, "script.py")
    assert finished.code == 1
    assert "RunnerError: task tasks.double is called while module tasks is imported" in finished.err
    assert "pynenc run" in finished.err
    wait_until(all_gone, "the supervisor has ended")
    assert int(run_python({}, "count.py").out) <= 3  # The script, and each worker once.


def test_a_package_that_calls_its_tasks_at_import_is_told_of(run_python: RunPython) -> None:
    files = {"package/__init__.py": "from package.tasks import double\ndouble(1).result\n", "package/tasks.py": HEAD}
    finished = run_python(files, "-c", "import package")
    assert finished.code == 1
    assert "task package.tasks.double is called while module package is imported" in finished.err


def test_a_module_may_call_tasks_of_others_at_its_import(run_python: RunPython) -> None:
    later = """
from tasks import app, double
SIX = double(3).result

@app.task
def six():
    return SIX
"""
    files = {"tasks.py": HEAD, "later.py": later, "script.py": "from later import six\nprint(six().result)\n"}
    assert run_python(files, "script.py") == (0, "6\n", "")
