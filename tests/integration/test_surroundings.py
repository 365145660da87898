"""Where calls begin: in the directory of whoever makes them, with its modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pynenc import RunnerError
from tests import surroundings
from tests.conftest import Finished

RunPython = Callable[..., Finished]

PLACES = """
import os
from pynenc import Pynenc
app = Pynenc(config_values={"num_workers": 1})

@app.task
def where():
    return os.path.basename(os.getcwd())

@app.task
def late():
    import found_late
    return found_late.NAME
"""


@pytest.mark.parametrize("text", ["one", "two", "three"])
def test_each_test_that_changes_its_directory_finds_the_files_of_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for name in ("first", "second"):
        directory = tmp_path / name
        directory.mkdir()
        monkeypatch.chdir(directory)
        assert surroundings.write("file.txt", text).result == str(directory)
        assert (directory / "file.txt").read_text() == text


@pytest.mark.parametrize("task", [surroundings.where, surroundings.async_where, surroundings.where_in_threads])
def test_calls_begin_where_their_script_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: object) -> None:
    assert callable(task)
    before = os.getcwd()
    assert set(task.parallelize([()] * 20).results) == {before}  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    assert set(task.parallelize([()] * 20).results) == {str(tmp_path)}  # type: ignore[attr-defined]
    monkeypatch.chdir(before)
    assert task().result == before


def test_a_call_that_goes_elsewhere_leaves_the_next_ones_where_they_belong(tmp_path: Path) -> None:
    for _ in range(3):
        assert surroundings.go(str(tmp_path)).result == os.getcwd()
        assert surroundings.where().result == os.getcwd()


def test_calls_that_go_elsewhere_again_and_again_begin_where_they_belong(tmp_path: Path) -> None:
    surroundings.go.parallelize([(str(tmp_path),)] * 4).wait()
    surroundings.where.parallelize([()] * 4).wait()  # What the workers find before these tells them.
    assert set(surroundings.go.parallelize([(str(tmp_path),)] * 100).results) == {os.getcwd()}


def test_what_a_call_makes_begins_where_that_call_is_and_leaves_it_there(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    assert surroundings.call_from(str(tmp_path / "inner")).result == (
        os.getcwd(),
        str(tmp_path / "inner"),
        str(tmp_path / "inner"),
    )
    assert surroundings.call_and_move(str(tmp_path), str(tmp_path / "inner")).result == (
        str(tmp_path),
        str(tmp_path / "inner"),
    )


def test_a_directory_that_is_gone_fails_the_calls_that_begin_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, gone = os.getcwd(), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    tasks = (surroundings.where, surroundings.async_where)
    assert [task().result for task in tasks] == [str(gone)] * 2
    gone.rmdir()
    for task in tasks:
        with pytest.raises(RunnerError, match="the directory in which its script made it, and there is none"):
            task().result  # noqa: B018
    os.chdir(before)
    assert surroundings.where().result == before


def test_a_module_found_by_where_the_script_was_is_found_when_it_has_gone_elsewhere(run_python: RunPython) -> None:
    script = """
import os
from tasks import where
os.mkdir("sub")
os.chdir("sub")
print(where().result)
os.chdir("..")
print(where().result)
"""
    finished = run_python({"tasks.py": PLACES}, "-c", script)
    assert finished == (0, "sub\nproject\n", "")


def test_what_is_added_to_the_path_later_is_known_to_the_calls_that_follow(run_python: RunPython) -> None:
    script = """
import sys
from tasks import late, where
where().result
sys.path.append("lib")
print(late().result)
"""
    files = {"tasks.py": PLACES, "script.py": script, "lib/found_late.py": "NAME = 'found'\n"}
    assert run_python(files, "script.py") == (0, "found\n", "")
