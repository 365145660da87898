"""The machine runs short of memory: a real control group, where this user may make one; elsewhere, the rules' tests have to do.

| what happens | the call that began last | the others |
| --- | --- | --- |
| memory is nearly used up | is ended, and run again when there is room | go on |
| the same by a call that must not run twice | the kernel ends its worker; WorkerLostError says so | go on |
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, wait_until

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT_MIB = 400

SCRIPT = """
import sys
from tests import hungry, tasks
{calls}
tasks.close()
"""


@pytest.fixture
def container() -> Iterator[Path]:
    """A control group of little memory."""
    group = MEMORY / f"pynenc-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_MIB << 20))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("no control group of version 1 can be made here")
    yield group

    def is_gone() -> bool:
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    wait_until(is_gone, "all processes in the control group have ended")


def run_inside(group: Path, calls: str, run_python) -> str:  # type: ignore[no-untyped-def]
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    finished = run_python({"script.py": f"{enter}\n{SCRIPT.format(calls=calls)}"}, "script.py", PYTHONPATH=str(PROJECT))
    assert finished.code == 0, finished.err
    return str(finished.out)


def test_the_call_that_began_last_is_run_again_when_there_is_room(  # type: ignore[no-untyped-def]
    container: Path, tmp_path: Path, run_python
) -> None:
    first, second, gate = tmp_path / "first", tmp_path / "second", tmp_path / "gate"
    calls = f"""
import time
from pathlib import Path

one = hungry.grow(150, {str(first)!r}, {str(gate)!r})
while not Path({str(first)!r}).exists():
    time.sleep(0.005)
two = hungry.grow(240, {str(second)!r}, {str(gate)!r})
while not any(change.status == "REROUTED" for call in (one, two) for change in call.history):
    time.sleep(0.05)
Path({str(gate)!r}).touch()
print(one.result, two.result)
"""
    assert run_inside(container, calls, run_python) == "150 240\n"
    assert first.read_text().split() == ["began"]
    assert second.read_text().split() == ["began", "began"]
    assert "oom_kill 0" in (container / "memory.oom_control").read_text()


def test_what_the_kernel_ends_is_told_as_that(container: Path, run_python) -> None:  # type: ignore[no-untyped-def]
    calls = """
print(hungry.take_at_once(600).exception)
print(tasks.add(1, 2).result)
"""
    said = run_inside(container, calls, run_python)
    assert "was killed by SIGKILL" in said
    assert "the kernel has ended a process just then because memory was short" in said
    assert f"of {LIMIT_MIB} MiB that there are" in said
    assert said.rstrip().endswith("3")
