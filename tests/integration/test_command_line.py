"""The command line as a user types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Finished, all_gone, own_processes, wait_until
from tests.terminal import CTRL_C, Terminal

RunPython = Callable[..., Finished]
APP = """
import sys
from pynenc import Pynenc
app = Pynenc("shown", config_values={"num_workers": 1})

@app.task
def add(x, y):
    print("adding")
    return x + y

def main():
    print(__name__, sys.argv[1:], add(1, 2).result)
"""


def pynenc(run_python: RunPython, *arguments: str, files: dict[str, str] | None = None) -> Finished:
    return run_python({"work.py": APP} if files is None else files, "-m", "pynenc", *arguments)


def test_run_imports_the_script_under_its_name_and_calls_main(run_python: RunPython) -> None:
    assert pynenc(run_python, "run", "work.py", "a", "--b") == (0, "adding\nwork ['a', '--b'] 3\n", "")


def test_run_runs_a_main_that_is_a_coroutine_function(run_python: RunPython) -> None:
    files = {"work.py": APP.replace("def main", "async def main").replace("add(1, 2).result", "await add(1, 2)")}
    assert pynenc(run_python, "run", "work.py", files=files) == (0, "adding\nwork [] 3\n", "")


def test_run_works_inside_a_package(run_python: RunPython) -> None:
    files = {"pack/__init__.py": "", "pack/inner.py": APP}
    assert pynenc(run_python, "run", "pack/inner.py", files=files) == (0, "adding\npack.inner [] 3\n", "")


@pytest.mark.parametrize(
    ("files", "script", "words"),
    [
        ({}, "nothing.py", "there is no script"),
        ({"a-b.py": ""}, "a-b.py", "not an identifier"),
        ({"empty.py": ""}, "empty.py", "has no main()"),
        ({"json.py": "def main(): ..."}, "json.py", "rename the script"),
        ({"sqlite3.py": "def main(): ..."}, "sqlite3.py", "rename the script"),
    ],
)
def test_run_says_what_is_wrong(run_python: RunPython, files: dict[str, str], script: str, words: str) -> None:
    finished = run_python(files, "-P", "-m", "pynenc", "run", script)
    assert finished.code == 1
    assert words in finished.err
    assert "Traceback" not in finished.err


def test_a_started_supervisor_stays_serves_scripts_and_stops(run_python: RunPython) -> None:
    started = pynenc(run_python, "runner", "start", "--workers", "1")
    assert started.code == 0, started.err
    assert "pid" in started.out
    again = pynenc(run_python, "--app", "work.app", "runner", "start")
    assert again.code == 1
    assert "runs already" in again.err
    marker = os.environ["PYNENC_TEST_MARKER"]
    wait_until(lambda: len(own_processes(marker)) == 3, "the supervisor, its fork server and its worker are there")
    pids = {process.pid for process in own_processes(marker)}
    for _ in range(2):
        # The file is not written again: workers that have imported it as it was would be replaced.
        assert pynenc(run_python, "run", "work.py", files={}) == (0, "adding\nwork [] 3\n", "")
    assert {process.pid for process in own_processes(marker)} == pids
    shown = pynenc(run_python, "status")
    assert "supervisor: pid" in shown.out
    assert "work.add" in shown.out
    stopped = pynenc(run_python, "runner", "stop")
    assert stopped.code == 0
    wait_until(all_gone, "the supervisor has ended")
    assert pynenc(run_python, "runner", "stop").code == 1
    assert "no supervisor runs" in pynenc(run_python, "status").out


NESTED = """
from pynenc import Pynenc
app = Pynenc("shown", config_values={"num_workers": 1})

@app.task
def inner(name):
    print("inner of", name)
    return name

@app.task
def outer(name):
    return inner(name).result

def main():
    import sys
    print(outer(sys.argv[1]).result)
"""


def test_what_calls_of_calls_print_goes_to_their_script_and_nobody_holds_that_open(run_python: RunPython) -> None:
    """The worker stays connected as a client of its own when the first script has ended, whose output is read to its end."""
    assert pynenc(run_python, "runner", "start", files={"nested.py": NESTED}).code == 0
    for name in ("one", "two"):
        shown = run_python({}, "-m", "pynenc", "run", "nested.py", name, timeout=20)
        assert shown == (0, f"inner of {name}\n{name}\n", "")
    assert pynenc(run_python, "runner", "stop", files={}).code == 0
    wait_until(all_gone, "the supervisor has ended")


def test_monitor_shows_what_happens_again_and_again(run_python: RunPython) -> None:
    assert pynenc(run_python, "runner", "start").code == 0
    assert pynenc(run_python, "run", "work.py").code == 0
    shown = pynenc(run_python, "monitor", "--interval", "0.01", "--count", "3")
    assert shown.code == 0, shown.err
    assert shown.out.count("supervisor: pid") == shown.out.count("work.add") == 3
    assert shown.out.count("0 calls a second end") == 2  # The first look has nothing before it.
    wrong = pynenc(run_python, "monitor", "--interval", "0")
    assert (wrong.code, "--interval: invalid seconds value" in wrong.err) == (2, True)
    assert pynenc(run_python, "runner", "stop").code == 0
    wait_until(all_gone, "the supervisor has ended")
    assert "no supervisor runs" in pynenc(run_python, "monitor", "--count", "1").out


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_monitor_keeps_no_supervisor_and_ends_with_ctrl_c(kind: str, run_python: RunPython, tmp_path: Path) -> None:
    script = "import sys\nfrom work import add\nprint(add(1, 2).result, flush=True)\nsys.stdin.read()\n"
    assert run_python({"work.py": APP, "script.py": script}, "-c", "").code == 0
    project = tmp_path / "project"
    command = ["-m", "pynenc", "--app", "work.app", "monitor", "--interval", "0.01"]
    with (
        subprocess.Popen([sys.executable, "script.py"], cwd=project, stdin=-1, stdout=-1) as process,
        Terminal(command, project, {"TERM": kind}) as terminal,
    ):
        terminal.wait_for("supervisor: pid")
        process.communicate(timeout=30)
        terminal.wait_for("no supervisor runs")
        terminal.press(CTRL_C)
        code, shown = terminal.wait()
    assert code == 0
    assert "Traceback" not in shown
    wait_until(all_gone, "the supervisor has ended")


def test_show_config_tells_each_value_and_its_source(run_python: RunPython) -> None:
    finished = pynenc(run_python, "show_config")
    assert finished.code == 0, finished.err
    assert "environment variable" in finished.out
    assert "num_workers" in finished.out
    assert "work.add" in finished.out


def test_an_app_must_be_named_when_there_are_several_or_none(run_python: RunPython) -> None:
    none = pynenc(run_python, "status", files={"plain.py": ""})
    assert (none.code, "no module with an app" in none.err) == (1, True)
    several = pynenc(run_python, "status", files={"work.py": APP, "other.py": APP.replace("shown", "other")})
    assert (several.code, "several apps: other.app, work.app" in several.err) == (1, True)
    wrong = pynenc(run_python, "--app", "work.nothing", "status")
    assert (wrong.code, "cannot be found" in wrong.err) == (1, True)


@pytest.mark.parametrize("command", [["script.py"], ["-m", "pynenc", "run", "script.py"]], ids=["python", "pynenc run"])
def test_interrupting_a_script_ends_it_and_its_workers_at_once(tmp_path: Path, command: list[str]) -> None:
    begun = tmp_path / "begun"
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from tests.tasks import begin_and_wait_for\n"
        "def main():\n"
        f"    begin_and_wait_for({str(begun)!r}, {str(tmp_path / 'never')!r}).result\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_until(begun.exists, "the call runs")
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert said == "pynenc: interrupted; 1 call is kept: pynenc resume runs it\n"
    wait_until(all_gone, "all have ended")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("errors/errors.py", "and then: 2.0"),
        ("census/census.py --limit 60", "both runs found the same"),
        ("downloads/downloads.py", "60 pages, 6,570 bytes"),
        ("pipeline/pipeline.py --chapters 20", "letters in 20 chapters"),
        ("images/images.py --images 6", "0.04 % of the pixels are wrong"),
        ("pipeline/pipeline.py --break", "ended with ValueError: a broken step"),
    ],
)
def test_examples_run(run_python: RunPython, command: str, says: str) -> None:
    script, *arguments = command.split()
    finished = run_python({}, "-m", "pynenc", "run", str(PROJECT / "examples" / script), *arguments)
    assert finished.code == 0, finished.err
    assert says in finished.out
    if "downloads" in script:
        most = finished.out.rpartition("by host: ")[2].split(" (")[0].split(", ")
        assert set(most) <= {"1", "2"}


def test_the_resumable_import_goes_on_after_a_crash(run_python: RunPython) -> None:
    command = ("-m", "pynenc", "run", str(PROJECT / "examples" / "resume" / "resume.py"))
    crashed = run_python({}, *command, "--crash")
    assert (crashed.code, crashed.out) == (-signal.SIGKILL, "1,000 lines are there: killed\n")
    for _ in range(2):
        finished = run_python({}, *command)
        assert finished.code == 0, finished.err
        assert finished.out.startswith("2,000 lines, ")
        assert finished.out.endswith("loaded twice: 0\n")
    assert "2,000 of them from earlier runs" in finished.out
