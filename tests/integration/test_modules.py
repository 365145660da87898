"""Calls run the code of their own script, as it is now, whatever a worker has imported before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import talking_script, wait_until

WHO = """
import os, time
from pynenc import Pynenc
import beside
app = Pynenc(config_values={{"num_workers": 1}}, app_id="shared")

@app.task
def who():
    return "{name}", beside.NAME

@app.task(async_concurrency=4)
async def who_async():
    return "{name}", beside.NAME

@app.task(threads_per_worker=4)
def who_in_threads():
    return "{name}", beside.NAME

@app.task
def pid():
    return os.getpid()

@app.task
def hold(begun, gate):
    open(begun, "w").close()
    while not os.path.exists(gate):
        time.sleep(0.005)

@app.task
def outcome_of(invocation_id):
    return app.get_invocation(invocation_id).result
"""
SCRIPT = """
from tasks import app, pid, who, who_async, who_in_threads
print(who().result, who_async().result, who_in_threads().result)
"""
TALKING = """
import sys
from tasks import app, hold, outcome_of, who, who_async
for line in sys.stdin:
    print(eval(line), flush=True)
"""
NAMES = ("first", "second")


def projects(directory: Path) -> list[Path]:
    """Two directories with modules of the same names and sizes, and one state."""
    made = []
    for name in NAMES:
        project = directory / name
        project.mkdir()
        (project / "tasks.py").write_text(WHO.format(name=name))
        (project / "beside.py").write_text(f"NAME = 'beside {name}'\n")
        (project / "script.py").write_text(SCRIPT)
        made.append(project)
    return made


def output_of(project: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *(arguments or ["script.py"])],
        cwd=project,
        check=True,
        capture_output=True,
        text=True,
        timeout=40,
    ).stdout


@contextmanager
def staying_supervisor(project: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "pynenc", "--app", "tasks.app", "runner"]
    subprocess.run([*command, "start"], cwd=project, check=True, capture_output=True, timeout=40)
    try:
        yield
    finally:
        subprocess.run([*command, "stop"], cwd=project, check=True, capture_output=True, timeout=40)


def expected(name: str) -> str:
    one = (name, f"beside {name}")
    return f"{one} {one} {one}\n"


def test_scripts_with_modules_of_one_name_get_their_own_functions_one_after_the_other(tmp_path: Path) -> None:
    first, second = projects(tmp_path)
    with staying_supervisor(first):
        for project in (first, second, first):
            assert output_of(project) == expected(project.name)


def test_modules_of_one_name_beside_those_of_tasks_are_not_mixed_either(tmp_path: Path) -> None:
    first, second = projects(tmp_path)
    (second / "tasks.py").rename(second / "others.py")
    (second / "script.py").write_text(SCRIPT.replace("from tasks", "from others"))
    with staying_supervisor(first):
        assert [output_of(project) for project in (first, second)] == [expected(name) for name in NAMES]


def test_scripts_that_take_turns_both_go_on(tmp_path: Path) -> None:
    told = []
    scripts = []
    for project in projects(tmp_path):
        (project / "script.py").write_text(TALKING)
        scripts.append(talking_script(project))
    for line in ("who().result", "list(who.parallelize([()] * 50).results)[-1]", "who_async().result"):
        for script in scripts:
            assert script.stdin is not None
            script.stdin.write(f"{line}\n")
            script.stdin.flush()
        for script in scripts:
            assert script.stdout is not None
            told.append(script.stdout.readline())
    for script in scripts:
        script.communicate(timeout=40)
    assert told == [f"{(name, f'beside {name}')}\n" for name in NAMES] * 3


@pytest.mark.parametrize("edited", ["tasks.py", "beside.py"])
def test_a_module_that_was_edited_is_run_as_it_is_now(tmp_path: Path, edited: str) -> None:
    project, _ = projects(tmp_path)
    with staying_supervisor(project):
        assert output_of(project) == expected("first")
        file = project / edited
        # Another length: Python takes its compiled file for the same if that has not changed, within the same second.
        file.write_text(file.read_text().replace("first", "afterwards"))
        assert output_of(project).count("afterwards") == 3


def test_workers_stay_while_nothing_was_edited(tmp_path: Path) -> None:
    project, _ = projects(tmp_path)
    (project / "script.py").write_text("from tasks import pid, who\nprint(who().result and pid().result)\n")
    with staying_supervisor(project):
        assert output_of(project) == output_of(project)


def test_a_module_that_is_edited_while_its_script_runs_replaces_no_worker_again_and_again(tmp_path: Path) -> None:
    project, _ = projects(tmp_path)
    (project / "script.py").write_text(
        "import os, sys\n"
        "import tasks\n"
        "open('tasks.py', 'a').write('\\n# edited\\n')\n"
        "print(len({tasks.who().result and tasks.pid().result for _ in range(6)}))\n"
        "print(tasks.pid.with_options(priority=3)().result == tasks.pid().result)\n"
    )
    assert output_of(project) == "1\nTrue\n"


def test_a_call_of_another_script_that_one_waits_for_runs_in_another_worker(tmp_path: Path) -> None:
    """The only worker is held until both calls are there; the one that comes first then waits for the other script's."""
    scripts = []
    for project in projects(tmp_path):
        (project / "script.py").write_text(TALKING)
        scripts.append(talking_script(project))
    gate, begun = tmp_path / "gate", tmp_path / "begun"

    def ask(number: int, line: str) -> str:
        stdin, stdout = scripts[number].stdin, scripts[number].stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{line}\n")
        stdin.flush()
        return stdout.readline().strip()

    ask(0, f"hold({str(begun)!r}, {str(gate)!r}) and 0")
    wait_until(begun.exists, "the worker is held")
    found = ask(1, "who().invocation_id")
    ask(1, "app._cluster.sync()")
    ask(0, f"globals().update(found=outcome_of.with_options(priority=9)({found!r})) or app._cluster.sync()")
    gate.touch()
    assert ask(0, "found.result") == str(("second", "beside second"))
    assert ask(0, "who().result") == str(("first", "beside first"))
    for script in scripts:
        script.communicate(timeout=40)
