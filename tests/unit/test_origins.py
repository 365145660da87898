"""Which modules a process has, and whether they are those that a client means."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pynenc.system.origins import Origin, from_texts, origins, state_of, to_texts
from pynenc.worker.imports import Imports

NAME = "module_of_two_places"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two files for one name, the first of which can be imported."""
    files = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        files.append(tmp_path / place / f"{NAME}.py")
        files[-1].write_text("# a module\n")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    yield files
    sys.modules.pop(NAME, None)


def edit(file: Path) -> None:
    file.write_text(file.read_text() + "# edited\n")


def told(file: Path) -> list[str]:
    """What a client tells that has imported a file as it is now."""
    return to_texts({NAME: Origin(state_of(str(file)), str(file))})


def with_import(told_then: list[str]) -> Imports:
    """A worker that has imported the module for a client."""
    imports, before = Imports(), frozenset(sys.modules)
    importlib.import_module(NAME)
    imports.imported(told_then, before)
    return imports


def test_modules_of_the_user_are_found_and_no_others(places: list[Path]) -> None:
    importlib.import_module(NAME)
    found = origins()
    assert found[NAME] == Origin(state_of(str(places[0])), str(places[0]))
    assert not found.keys() & {"os", "pytest", "pynenc", "pynenc.task", "sys", "__main__"}


def test_a_module_keeps_the_state_in_which_it_was_seen_until_it_is_imported_again(places: list[Path]) -> None:
    module = importlib.import_module(NAME)
    before = origins()[NAME]
    edit(places[0])
    assert origins()[NAME] == before
    importlib.reload(module)
    assert origins()[NAME] == Origin(state_of(str(places[0])), str(places[0]))


def test_what_is_no_module_in_sys_modules_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(f"it was asked for {name}")

    monkeypatch.setitem(sys.modules, "odd_module", Odd())  # type: ignore[arg-type]
    assert "odd_module" not in origins()


def test_texts_that_tell_of_no_module_are_passed_over() -> None:
    assert from_texts(["", "name", "name state", "name 1-2 /a b"]) == {"name": Origin("1-2", "/a b")}
    assert state_of("/nowhere") == state_of("with\0zero") == ""


def test_a_worker_refuses_another_file_and_names_both(places: list[Path]) -> None:
    here, there = places
    imports = with_import(told(here))
    assert imports.clash(told(here)) is None
    assert imports.clash([]) is None
    assert imports.clash(told(there)) == (NAME, str(here), str(there))


def test_a_worker_that_has_imported_nothing_refuses_nothing(places: list[Path]) -> None:
    assert Imports().clash(told(places[1])) is None


def test_a_module_that_was_there_before_its_worker_is_not_looked_at(places: list[Path]) -> None:
    importlib.import_module(NAME)
    assert Imports().clash(told(places[1])) is None


def test_an_edited_module_is_refused_until_it_is_imported_anew(places: list[Path]) -> None:
    here = places[0]
    old, imports = told(here), with_import(told(here))
    edit(here)
    clash = imports.clash(told(here))
    assert clash is not None
    assert clash.is_edited
    assert imports.clash(old) is None  # Its client runs what this worker runs.
    del sys.modules[NAME]
    fresh = with_import(told(here))
    assert fresh.clash(told(here)) is None
    assert fresh.clash(old) is None  # It was called before the edit: what is there now is run.


def test_what_a_fresh_worker_imports_is_good_enough_for_the_client_for_which_it_did(places: list[Path]) -> None:
    here, there = places
    imports = with_import(told(there))  # The client has found it in another way.
    assert imports.clash(told(there)) is None
    assert imports.clash(told(here)) is None
    edit(there)
    assert imports.clash(told(there)) is not None


def test_a_file_that_is_gone_is_run_as_it_was(places: list[Path]) -> None:
    here = places[0]
    imports = with_import(told(here))
    os.remove(here)
    assert imports.clash(to_texts({NAME: Origin("another", str(here))})) is None
