"""What a script defines itself, beside its tasks: it travels by value, and comes back as what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Finished

pytestmark = pytest.mark.usefixtures("leaves_nothing")

JOBS = """
from pynenc import Pynenc
app = Pynenc()

@app.task
def apply(f, x):
    return f(x)

@app.task
def same(x):
    return x

@app.task
def passed_on(x):
    return same(x).result

@app.task
def fail_with(error):
    raise error

@app.task(max_retries=2, retry_for=(LookupError,))
def call(f):
    return f()

@app.task(call_result_cache=True)
def once(f, x):
    return f(x), once.invocation.invocation_id
"""

DEFINITIONS = """
import enum, typing
from dataclasses import dataclass, field
from jobs import *

class Color(enum.Enum):
    RED = 1

@dataclass(frozen=True)
class Point:
    x: int
    names: tuple = field(default=(), metadata={"kept": True})
    class Far(Exception):
        pass
    def wrapped(self):
        return Wrapper(self)

class Wrapper:
    made = 0
    def __init__(self, point):
        self.point = point
        Wrapper.made += 1
    def __eq__(self, other):
        return isinstance(other, Wrapper) and self.point == other.point
    def unwrapped(self):
        return Point(self.point.x)

class Pair(typing.NamedTuple):
    first: int

@dataclass(slots=True)
class Slotted:
    x: int
    def here(self):
        return type(self) is Slotted

class Busy(LookupError):
    def __init__(self, code):
        super().__init__(code)
        self.code = code

def double(x):
    return 2 * x
"""

VALUES = """
point = Point(3)
classes = Point, Point.Far, [point, Point], Point.wrapped
for value in (point, Color.RED, Pair(2), Slotted(1), point.wrapped(), {"color": Color.RED}, double, *classes):
    for task in (same, passed_on):
        back = task(value).result
        assert back == value and type(back) is type(value), (back, value)
assert same(double).result is double and same(Point).result is Point and same(Color.RED).result is Color.RED
assert apply(double, 4).result == 8
assert apply(lambda x: double(x), 4).result == 8
assert apply(Point, 3).result == point
assert apply(Slotted.here, Slotted(1)).result
assert apply(Wrapper.unwrapped, Wrapper(point)).result == point
assert list(same.parallelize([(Point(i),) for i in range(5)]).results) == [Point(i) for i in range(5)]
assert Wrapper.made == 2  # What came back has not overwritten the class.
print("all came back")
"""

EXCEPTIONS = """
def be_busy():
    raise Busy(7)

for error in (Busy(7), Point.Far("away")):
    try:
        fail_with(error).result
    except type(error) as caught:
        assert caught.args == error.args
made = call(be_busy)
try:
    made.result
except Busy as caught:
    print(caught.code, made.num_retries)
"""

LARGE = """
import numpy as np
point, array = Point(3), np.arange(1 << 19)
back, same_array = same((point, array)).result
assert back == point and (same_array == array).all()
back, _, points = same((point, bytes(1 << 21), [point])).result
assert [back] == points == [point]
assert same(app.put((point, bytes(1 << 21)))).result[0] == point
assert same("__main__").result == "__main__"
print("all came back")
"""


@pytest.mark.parametrize("synchronous", ["False", "True"])
def test_what_a_script_defines_travels_and_comes_back_as_its_own(
    synchronous: str, run_python: Callable[..., Finished]
) -> None:
    files = {"jobs.py": JOBS, "values.py": DEFINITIONS + VALUES, "exceptions.py": DEFINITIONS + EXCEPTIONS}
    mode = {"PYNENC__DEV_MODE_FORCE_SYNC_TASKS": synchronous}
    assert run_python(files, "values.py", **mode).out == "all came back\n"
    assert run_python(files, "exceptions.py", **mode).out == "7 2\n"


def test_so_does_what_a_command_line_or_a_module_that_is_run_defines(run_python: Callable[..., Finished]) -> None:
    files = {"jobs.py": JOBS, "values.py": DEFINITIONS + VALUES}
    assert run_python(files, "-c", files["values.py"]).out == "all came back\n"
    assert run_python(files, "-m", "values").out == "all came back\n"


def test_so_does_what_lies_beside_large_values(run_python: Callable[..., Finished]) -> None:
    finished = run_python({"jobs.py": JOBS, "large.py": DEFINITIONS + LARGE}, "large.py")
    assert finished.out == "all came back\n", finished.err


def test_results_of_an_earlier_run_are_of_the_classes_that_the_script_has_now(
    run_python: Callable[..., Finished],
) -> None:
    made = "print(same(Point(3)).invocation_id)"
    looked_up = "import sys; print(app.get_invocation(sys.argv[1]).result == Point(3))"
    script = f"{DEFINITIONS}\nimport sys\nif len(sys.argv) == 1:\n    {made}\nelse:\n    {looked_up}\n"
    first = run_python({"jobs.py": JOBS, "s.py": script}, "s.py")
    assert run_python({}, "s.py", first.out.strip()).out == "True\n"


def test_the_script_is_part_of_what_it_defines_for_the_result_cache(run_python: Callable[..., Finished]) -> None:
    script = "from jobs import once\ndef add(x):\n    return x + 1\nprint(*once(add, 4).result)\n"
    runs = [run_python({"jobs.py": JOBS, "s.py": script}, "s.py").out for _ in range(2)]
    runs.append(run_python({"s.py": script.replace("+ 1", "+ 2")}, "s.py").out)
    assert runs[0] == runs[1]
    assert [run.split()[0] for run in runs] == ["5", "5", "6"]


def test_what_cannot_travel_by_value_is_told_of_at_the_call(run_python: Callable[..., Finished]) -> None:
    script = (
        "import threading\nfrom jobs import *\nlock = threading.Lock()\ndef locked(x):\n    return lock\n"
        "try:\n    apply(locked, 4)\nexcept TypeError as error:\n    print(error)\n"
    )
    finished = run_python({"jobs.py": JOBS, "s.py": script}, "s.py")
    assert (
        "jobs.apply(): argument 'f': function cannot be pickled: TypeError: cannot pickle '_thread.lock'"
        in finished.out
    )
