"""What a power cut leaves behind: the next start takes away what is ours, and the next clean end leaves nothing.

All processes are killed at once at random moments, also while they start; nobody has time to clean up.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pynenc.client.paths import paths_of
from tests import examples, tasks
from tests.conftest import PROJECT, all_gone, own_processes, wait_until

KEPT = {".gitignore", "tests.db", "tests.lock", "tests.log", "tests.workers"}
"""What lies in a state directory while nothing runs."""

SCRIPT = (
    "from tests import tasks\ntasks.use_fresh_configuration()\n"
    "group = tasks.sleep_for.parallelize([(0.001, x) for x in range(2000)])\n"
    "print('sent', flush=True)\n"
    "for x in range(10_000):\n    tasks.add(x, 1).result\n"
)


def kill_everything() -> int:
    """Kill all processes of this test, until there is none; how many there were."""
    marker, killed = os.environ["PYNENC_TEST_MARKER"], 0
    while processes := own_processes(marker):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
    return killed


def state_files() -> set[str]:
    return {path.name for path in Path(tasks.app.conf.state_path).iterdir()}


@pytest.mark.parametrize("seed", range(1, 1 + examples(2)))
def test_the_next_clean_run_leaves_nothing_of_what_power_cuts_left(seed: int) -> None:
    chance, killed = random.Random(seed), 0
    for _ in range(6):
        script = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=PROJECT, stdout=subprocess.PIPE)
        if chance.random() < 0.5:
            assert script.stdout is not None
            script.stdout.readline()  # It has a supervisor.
            time.sleep(chance.uniform(0.0, 0.2))
        else:
            time.sleep(chance.uniform(0.05, 0.6))  # It starts, or has one.
        killed += kill_everything()
        script.communicate()
    assert killed >= 6
    assert tasks.add(1, 2).get(30) == 3
    assert list(tasks.add.parallelize([(x, 1) for x in range(500)]).results) == list(range(1, 501))
    tasks.close()
    wait_until(all_gone, "all processes have ended")
    assert state_files() == KEPT
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_supervisor_whose_starter_was_killed_meanwhile_ends_by_itself() -> None:
    """And the one that the next client starts is the only one."""
    assert tasks.add(1, 2).result == 3
    tasks.close()
    tasks.use_fresh_configuration()
    marker = os.environ["PYNENC_TEST_MARKER"]
    wait_until(lambda: not own_processes(marker), "the supervisor has ended")
    run_file = Path(paths_of(tasks.app.conf.state_path, "tests").run_file)
    for _ in range(2):
        script = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=PROJECT, stdout=subprocess.DEVNULL)
        wait_until(run_file.exists, "it starts a supervisor")
        script.kill()
        script.wait()
        wait_until(lambda: not own_processes(marker), "the supervisor has ended")
        assert tasks.add(1, 2).get(30) == 3
        tasks.close()
        tasks.use_fresh_configuration()
        wait_until(lambda: not own_processes(marker), "the supervisor has ended")
        assert not run_file.exists()
        assert list(Path(tempfile.gettempdir()).iterdir()) == []
    assert state_files() == KEPT
