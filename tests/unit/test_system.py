"""Processors, locks, parents, and the way of one call as the documents draw it."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pynenc.system.cpus import thread_caps, usable_cpus
from pynenc.system.lock import FileLock
from pynenc.system.parent import die_with_parent
from tests.conftest import PROJECT

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroups(tmp_path: Path, own: str, files: dict[str, str]) -> tuple[str, str]:
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return str(tmp_path / "root"), str(tmp_path / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, CPUS),
        ("0::/elsewhere\n", {"cpu.max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "20000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 1),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            CPUS,
        ),
        ("0::/a\n", {"a/cpu.max": f"{CPUS * 1000}00000 100000\n"}, CPUS),
        ("", {}, CPUS),
    ],
)
def test_quotas_of_either_version_limit_the_processors(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    assert usable_cpus(*cgroups(tmp_path, own, files)) == expected


def test_what_the_user_set_is_not_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    caps = thread_caps(workers=2, blas_threads=None, cpus=8)
    assert caps["OMP_NUM_THREADS"] == "4"
    assert "MKL_NUM_THREADS" not in caps
    assert thread_caps(workers=16, blas_threads=None, cpus=8)["OMP_NUM_THREADS"] == "1"


def test_a_lock_excludes_and_is_free_again(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first, second = FileLock(path), FileLock(path)
    with first:
        assert not second.acquire_nowait()
    assert second.acquire_nowait()
    second.release()


WAY_OF_A_CALL = [
    ("pynenc.task", "Task.__call__"),
    ("pynenc.client.batcher", "Batcher.add"),
    ("pynenc.supervisor.loop", "Loop.receive"),
    ("pynenc.supervisor.turn", "Turn.run"),
    ("pynenc.supervisor.orchestrator", "Orchestrator.handle"),
    ("pynenc.worker.lease", "run"),
    ("pynenc.execution", "run_lease"),
    ("pynenc.state_backend.store", "Store.commit"),
    ("pynenc.client.connection", "Connection.wait_until"),
]


@pytest.mark.parametrize(("module", "name"), WAY_OF_A_CALL)
def test_the_way_of_a_call_is_as_the_architecture_page_says(module: str, name: str) -> None:
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    page = (PROJECT / "docs" / "architecture.md").read_text()
    assert f"`{name}`" in page or f"`{module.rpartition('.')[2]}.{name}`" in page


only_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of a parent's death")


@only_linux
def test_a_child_whose_parent_has_ended_already_ends_at_once() -> None:
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        mine = os.getpid()
        if os.fork() == 0:
            while os.getppid() == mine:  # Until its parent has ended.
                os.sched_yield()
            os.close(told)
            die_with_parent(mine)
            os.write(tell, b"goes on")
        os._exit(0)
    os.close(tell)
    os.waitpid(parent, 0)
    assert os.read(told, 7) == b""
    os.close(told)


@only_linux
def test_a_child_ends_when_its_parent_does() -> None:
    told, tell = os.pipe()
    begun, begin = os.pipe()
    parent = os.fork()
    if parent == 0:
        mine = os.getpid()
        if os.fork() == 0:
            die_with_parent(mine)
            os.write(begin, b"1")
            signal.pause()
        os.read(begun, 1)
        os._exit(0)
    os.close(tell)
    assert os.waitpid(parent, 0)[1] == 0
    assert os.read(told, 1) == b"", "its end of the pipe is closed with it"
    for descriptor in (told, begun, begin):
        os.close(descriptor)
