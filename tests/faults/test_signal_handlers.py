"""Signal handlers of the script's own: they may ask pynenc, they may raise, and what they interrupt goes on.

| what the handler interrupts | what it may do |
| --- | --- |
| a wait, in this thread or through another one that reads | ask anything, call, wait |
| the main program while it makes a call, sends, reads or connects | `RunnerError`, at once; what was interrupted loses nothing |
| SIGPIPE at its default | is no handler: the script lives on when its supervisor dies |
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import PROJECT, Finished

Run = Callable[..., Finished]

TASKS = """
import os, signal, threading
from pathlib import Path
from pynenc import Pynenc

app = Pynenc()

def wait_for(name):
    while not Path(name).exists():
        threading.Event().wait(0.002)

@app.task
def add(x, y):
    return x + y

@app.task
def ring(pid):
    "Signals the client once it says that it waits, and goes on when the client's signal handler says so."
    wait_for("waiting")
    os.kill(pid, signal.SIGUSR1)
    wait_for("answered")
    return "rung"
"""

RING = """
import os, signal, threading
from pathlib import Path
from pynenc import RunnerError
from asked import add, app, ring

answers = []

def ask(*_):
    try:
        answers.append(question())
    except RunnerError:
        # It came a moment before the main program slept. Where that sleeps, one of the next ones is answered.
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        return
    except BaseException:
        Path("answered").touch()
        raise
    Path("answered").touch()

signal.signal(signal.SIGUSR1, ask)
signal.signal(signal.SIGALRM, ask)
group = ring.parallelize([(os.getpid(),)])
invocation = group[0]
"""

WAIT = """
Path("waiting").touch()
print(invocation.result, *answers)
"""

QUESTIONS = {
    "invocation.status": "RUNNING",
    "app.get_invocation(invocation.invocation_id).status": "RUNNING",
    "sum(group.counts.values())": "1",
    "invocation.wait(timeout=0)": "False",
    "invocation.wait(timeout=0.01)": "False",
    "invocation.cancel()": "None",
    "app.report()['unfinished']": "1",
    "add(1, 2).result": "3",
    "[add(x, 1) for x in range(3)][2].result": "3",
    "list(add.parallelize([(x, 1) for x in range(3)]).results)": "[1, 2, 3]",
    "list(add.stream([(x, 1) for x in range(3)]))": "[1, 2, 3]",
}


def run(run_python: Run, script: str, **environment: str) -> Finished:
    return run_python({"asked.py": TASKS, "script.py": script}, "script.py", PYTHONPATH=str(PROJECT), **environment)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_handler_asks_while_the_script_waits(run_python: Run, question: str) -> None:
    finished = run(run_python, RING + f"question = lambda: {question}\n" + WAIT)
    assert finished == (0, f"rung {QUESTIONS[question]}\n", "")


def test_what_a_handler_waits_for_is_there_for_whom_it_interrupts(run_python: Run) -> None:
    """The handler reads the result that the interrupted wait sleeps for, so it has to wake it."""
    question = "def question():\n    Path('answered').touch()\n    return invocation.result\n"
    assert run(run_python, RING + question + WAIT) == (0, "rung rung\n", "")


def test_a_handler_asks_while_another_thread_reads(run_python: Run) -> None:
    reader = """
from pynenc.client.reading import ReadingTurn
question = lambda: add(1, 2).result
other = threading.Thread(target=lambda: print(ring(os.getpid()).result))
reads = threading.Event()
sleeps = ReadingTurn.wait_readable
ReadingTurn.wait_readable = lambda turn, timeout: (reads.set(), sleeps(turn, timeout))[1]
other.start()
reads.wait()
"""
    finished = run(run_python, RING + reader + WAIT + "other.join()\n", PYNENC__NUM_WORKERS="3")
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.count("rung") == 2
    assert " 3" in finished.out


def test_a_handler_is_interrupted_by_another_one(run_python: Run) -> None:
    question = """
def inner(*_):
    try:
        answers.append(add(3, 4).result)
    except RunnerError:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        return
    Path("answered").touch()

def question():
    Path("waiting").unlink()
    signal.signal(signal.SIGUSR1, inner)
    signal.signal(signal.SIGALRM, inner)
    waited = ring(os.getpid())
    Path("waiting").touch()
    return waited.result
"""
    assert run(run_python, RING + question + WAIT, PYNENC__NUM_WORKERS="3") == (0, "rung 7 rung\n", "")


INTERRUPTED = """
import signal
from pynenc import RunnerError
from asked import add, app

class Instead:
    "Stands in for an object, one method of which is interrupted by a signal."
    def __init__(self, whole):
        self.whole = whole
    def __getattr__(self, name):
        return getattr(self.whole, name)
    def send(self, *given):
        signal.raise_signal(signal.SIGUSR1)
        return self.whole.send(*given)
    def feed(self, *given):
        signal.raise_signal(signal.SIGUSR1)
        return self.whole.feed(*given)

def ask(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        print(add(1, 2).result)
    except RunnerError as error:
        print(error)

assert add(0, 0).result == 0
connection = app._cluster._connection
signal.signal(signal.SIGUSR1, ask)
"""

INTERRUPT = {
    "made calls": (
        "batcher = app._cluster._batcher\n"
        "send = batcher._send\n"
        "batcher._send = lambda *given: (signal.raise_signal(signal.SIGUSR1), send(*given))\n"
    ),
    "sent something": "connection._socket = Instead(connection._socket)\ninvocations = add.parallelize([(1, 1)])\n",
    "read something": "connection._frames = Instead(connection._frames)\ninvocations = add.parallelize([(1, 1)])\n",
    "connected to the supervisor": (
        "from pynenc.client import launch\n"
        "app.close()\n"
        "find = launch.find_or_start\n"
        "launch.find_or_start = lambda *given: (signal.raise_signal(signal.SIGUSR1), find(*given))[1]\n"
    ),
}


@pytest.mark.parametrize("doing", INTERRUPT)
def test_a_handler_is_refused_where_nothing_can_be_asked(run_python: Run, doing: str) -> None:
    finished = run(run_python, INTERRUPTED + INTERRUPT[doing] + "print(add(20, 1).result, add(20, 2).result)\n")
    refused = (
        f"pynenc was asked for something in a signal handler that interrupted the main program while it {doing}; set a flag in "
        "the handler and ask in the main program, or leave it to the next signal\n"
    )
    assert finished == (0, refused + "21 22\n", "")


def test_a_handler_raises_its_own_error_out_of_a_wait(run_python: Run) -> None:
    """Also an `OSError`, as alarms raise it: it is not taken for one of the connection."""
    script = """
def question():
    raise TimeoutError("enough")

try:
    Path("waiting").touch()
    print(invocation.result)
except TimeoutError as error:
    print(error)
print(invocation.result)
"""
    assert run(run_python, RING + script) == (0, "enough\nrung\n", "")


def test_a_timer_asks_every_few_milliseconds(run_python: Run) -> None:
    """It neither hangs nor loses or mixes up anything, whatever it interrupts."""
    script = """
import signal
from pynenc import RunnerError
from asked import add, app

first = add(0, 0)
many = add.parallelize([(x, x) for x in range(3000)])
asked = depth = 0

def ask(*_):
    global asked, depth
    if depth == 3:  # A slow machine has one interrupt the other.
        return
    asked += 1
    number = asked
    depth += 1
    try:
        if number % 5 == 0:
            assert first.status in ("REGISTERED", "PENDING", "RUNNING", "SUCCESS")
        elif number % 5 == 1:
            assert sum(many.counts.values()) == 3000
        elif number % 5 == 2:
            assert add(number, 1).result == number + 1
        elif number % 5 == 3:
            assert app.get_invocation(first.invocation_id).task is add
        else:
            add(number, 1).cancel()
    except RunnerError as error:
        assert "signal handler" in str(error), error
    finally:
        depth -= 1

signal.signal(signal.SIGALRM, ask)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.005)
rounds = 0
while rounds < 10 or asked < 100:
    rounds += 1
    assert add(rounds, 1).result == rounds + 1
    some = [add(x, x) for x in range(200)]
    assert [one.result for one in some] == [2 * x for x in range(200)]
    assert list(add.stream((x, 1) for x in range(300))) == [x + 1 for x in range(300)]
    assert list(add.parallelize([(x, 2) for x in range(1500)]).results) == [x + 2 for x in range(1500)]
    assert sorted(one.result for one in add.parallelize([(x, 0) for x in range(50)]).as_completed()) == list(range(50))
    called = []
    for one in some:
        one.add_done_callback(called.append)
    assert called == some
signal.setitimer(signal.ITIMER_REAL, 0)
assert list(many.results) == [2 * x for x in range(3000)]
"""
    assert run(run_python, script) == (0, "", "")


def test_a_filter_survives_its_supervisor(run_python: Run) -> None:
    script = """
import os, signal, psutil
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from asked import add, app
print(add(1, 0).result)
supervisor = psutil.Process(app.report()["pid"])
supervisor.kill()
supervisor.wait()
print(add(2, 0).result)
"""
    assert run(run_python, script) == (0, "1\n2\n", "")


def test_a_script_closes_all_descriptors(run_python: Run) -> None:
    script = """
import os
from asked import add
print(add(1, 0).result, flush=True)
os.closerange(3, 4096)
"""
    finished = run(run_python, script)
    assert (finished.code, finished.out) == (0, "1\n")
    assert len(finished.err.splitlines()) <= 1
    assert "Traceback" not in finished.err
