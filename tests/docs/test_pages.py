"""Every Python block of the pages runs, as a file of the name that its first line gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pynenc.conf.config_task import ConfigTask
from tests.conftest import PROJECT, Finished

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> dict[str, str]:
    return dict(BLOCK.findall(page.read_text()))


@pytest.mark.timeout(300)  # A page may have two dozen programs, each of which has a bound of its own.
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_of_a_page_run_in_order(page: Path, run_python: Callable[..., Finished]) -> None:
    files = blocks(page)
    for name, text in files.items():
        if "@app.task" not in text:
            finished = run_python(files, name)
            assert finished.code == 0, finished.err


def test_the_readme_tells_what_its_example_prints(run_python: Callable[..., Finished]) -> None:
    assert run_python(blocks(PROJECT / "README.md"), "script.py") == (0, "3\n[2, 3, 5]\n", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_python_block_goes_untested(page: Path) -> None:
    assert page.read_text().count("```python") == len(BLOCK.findall(page.read_text()))


NOT_ACTED_ON = {"force_new_workflow", "triggers"}
"""Options that are accepted for later."""


@pytest.mark.parametrize("option", sorted({field.name for field in ConfigTask.fields()} - NOT_ACTED_ON))
def test_each_task_option_has_an_example(option: str) -> None:
    examples = "".join(blocks(PROJECT / "docs" / "tasks.md").values())
    assert re.search(rf"\b{option}=", examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
