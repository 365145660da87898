"""Supervisors that tests share whose subject is calls: to start one costs more than most of them do.

There is one for each configuration that a test asks for, in each process that runs tests. A test that leaves calls, or children of
workers, fails; whatever comes after a test that failed has a fresh supervisor. A supervisor learns how long the calls of a task
take, so tests of who runs what, and when, have one of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from pynenc.client.paths import paths_of
from tests import tasks

OF_CLIENTS = ("PYNENC__STATE_DIR", "PYNENC__DEV_MODE_FORCE_SYNC_TASKS")
"""Settings that no supervisor has."""

END_S = 20.0

read_configuration = tasks.use_fresh_configuration


class SharedSupervisors:
    """Starts a supervisor when the first test with a configuration comes."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="ps-"))
        self._running: dict[str, psutil.Process] = {}
        self._states: dict[str, str] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._count = 0

    def use(self) -> None:
        """In place of `tasks.use_fresh_configuration`: have the app use the supervisor for what the environment says."""
        tasks.close()
        settings = sorted(
            item for item in os.environ.items() if item[0].startswith("PYNENC__") and item[0] not in OF_CLIENTS
        )
        state = self._states.get(repr(settings))
        if state is None or not self._running[state].is_running():
            state = self._states[repr(settings)] = self._start()
        os.environ["PYNENC__STATE_DIR"] = state
        read_configuration()

    def left(self) -> list[str]:
        """What the test that ends has left."""
        supervisor = self._running.get(os.environ["PYNENC__STATE_DIR"])
        if supervisor is None:
            return []
        settings = self._settings[os.environ["PYNENC__STATE_DIR"]]
        assert tasks.app.supervisor_settings() == settings, "a test that shares configures by its environment"
        report = tasks.app.report()
        tasks.close()
        left = [f"{report['unfinished']} calls"] if report and report["unfinished"] else []
        parents = {one.pid: _parent_of(one) for one in supervisor.children(recursive=True)}
        for pid, parent in parents.items():
            is_fork_server_or_worker = supervisor.pid in (parent, parents.get(parent))
            if parent and not is_fork_server_or_worker:
                left.append(f"process {pid} of worker {parent}")
        return left

    def discard(self) -> None:
        """Have the next test begin with fresh ones."""
        tasks.close()
        self._states.clear()
        for supervisor in self._running.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                tree = [supervisor, *supervisor.children(recursive=True)]
                for process in tree:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(tree, END_S)
        self._running.clear()
        shutil.rmtree(self._directory)
        self._directory.mkdir()

    def end(self) -> None:
        """End them as a user would, and see that they leave nothing."""
        for state, supervisor in self._running.items():
            tree = [supervisor, *supervisor.children(recursive=True)]
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv("PYNENC__STATE_DIR", state)
                read_configuration()
                assert tasks.app.stop_supervisor(), "it has ended by itself"
                tasks.close()
            _, alive = psutil.wait_procs(tree, END_S)
            assert not alive, f"still there: {alive}"
            shutil.rmtree(state)
        left = sorted(path.name for path in self._directory.iterdir())
        shutil.rmtree(self._directory)
        assert not left, f"files were left in the temporary directory: {left}"

    def _start(self) -> str:
        self._count += 1
        state = str(self._directory / f"state-{self._count}")
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYNENC__STATE_DIR", state)
            environment.setenv("TMPDIR", str(self._directory))
            environment.setenv("PYNENC_TEST_MARKER", "shared")
            read_configuration()
            self._settings[state] = tasks.app.supervisor_settings()
            self._running[state] = psutil.Process(tasks.app.start_supervisor(paths_of(state, "tests").log))
            tasks.close()
        return state


def _parent_of(process: psutil.Process) -> int:
    """The pid; 0 for a process that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.ppid()
    return 0
