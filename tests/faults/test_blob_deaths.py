"""Large values and processes that are killed.

| who | when | what the user sees | what stays in shared memory |
| --- | --- | --- | --- |
| worker | it has mapped a large argument | the call is run again | nothing |
| worker | it has written a large result and not shipped it | the call is run again | nothing |
| supervisor | large arguments are queued, results are held | a pause; all results | nothing |
| script | calls with large arguments are under way | (it is gone) | nothing |
| supervisor | it ends, or is killed, while scripts hold or are about to send large values | nothing | what those hold |
| all at once | the same | the next start frees what nobody needs | nothing, after it |
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pynenc.blobs.directory import BlobDirectory
from tests import large, tasks
from tests.conftest import PROJECT, all_gone, supervisor, wait_until

COUNT = large.LARGE // 8
VALUES = np.arange(float(COUNT))


def directory() -> BlobDirectory:
    return BlobDirectory(tasks.app.state_backend.path)


def count_of_blobs() -> int:
    return len(list(directory().blobs()))


def kill_supervisor() -> None:
    supervisor().kill()


def test_a_worker_that_dies_with_a_large_result_in_hand_leaves_nothing(tmp_path: Path) -> None:
    assert np.array_equal(large.die_once_with(str(tmp_path / "mark"), VALUES).result, 2 * VALUES)
    wait_until(lambda: count_of_blobs() == 1, "what the dead worker wrote is freed; the result is there")


def test_a_worker_that_dies_after_it_has_written_leaves_nothing() -> None:
    """The segment is written, its name is not shipped: as if it were killed between the two."""
    tasks.add(1).result  # noqa: B018
    program = (
        "import os, signal, sys; from pynenc.blobs.directory import BlobDirectory; from pynenc.blobs.writing import Writer\n"
        "writer = Writer(BlobDirectory(sys.argv[1]), 1 << 30); writer.write(memoryview(bytes(1 << 20)))\n"
        "print('written', flush=True); sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, directory().files.replace(".blobs", ".db")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    report = tasks.app.report()
    assert report is not None
    psutil.Process(report["workers"][0]["pid"]).kill()  # Some death has the supervisor look around.
    wait_until(lambda: tasks.add(1, 1).result == 2 and len(own_processes_of_workers()) >= 2, "it is replaced")
    assert count_of_blobs() == 1, "its writer lives"
    process.communicate(b"")
    report = tasks.app.report()
    assert report is not None
    psutil.Process(report["workers"][0]["pid"]).kill()
    wait_until(lambda: count_of_blobs() == 0, "its writer is dead")


def own_processes_of_workers() -> list[int]:
    report = tasks.app.report()
    return [] if report is None else [worker["pid"] for worker in report["workers"]]


def test_a_killed_supervisor_is_replaced_and_all_large_values_are_there(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = large.doubled(VALUES)
    first.wait()
    reference = tasks.app.put(VALUES + 1)
    group = large.total_behind.parallelize([(str(gate), VALUES * one) for one in range(6)])
    more = large.total_behind.parallelize([(str(gate),)] * 6, common_args={"values": VALUES})
    tasks.app._cluster.sync()
    kill_supervisor()
    open_gate = threading.Timer(0.2, gate.touch)
    open_gate.start()
    assert list(group.results) == [VALUES.sum() * one for one in range(6)]
    assert list(more.results) == [VALUES.sum()] * 6
    assert first.result[2] == 4.0
    assert large.total(reference).result == VALUES.sum() + COUNT
    reference.release()
    wait_until(lambda: count_of_blobs() == 1, "nothing is left but the result")
    open_gate.join()


def test_what_was_not_committed_is_sent_again_with_its_large_arguments() -> None:
    tasks.add(1).result  # noqa: B018
    report = tasks.app.report()
    assert report is not None
    process = psutil.Process(report["pid"])
    process.suspend()
    invocations = [large.total(VALUES * one) for one in range(8)]
    process.kill()
    assert [one.result for one in invocations] == [VALUES.sum() * one for one in range(8)]
    wait_until(lambda: count_of_blobs() == 0, "all is freed")


def test_a_supervisor_that_ends_leaves_what_others_are_about_to_send() -> None:
    """Between two supervisors of its own a script may miss one that another script starts and lets end."""
    tasks.add(1).result  # noqa: B018
    killed = supervisor()
    killed.suspend()
    invocations = [large.total(VALUES * one) for one in range(4)]
    killed.kill()
    program = "from tests import tasks; tasks.use_fresh_configuration(); assert tasks.add(1, 2).result == 3"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, timeout=40)
    wait_until(all_gone, "the other supervisor has ended")
    assert count_of_blobs() == 4
    assert [one.result for one in invocations] == [VALUES.sum() * one for one in range(4)]
    wait_until(lambda: count_of_blobs() == 0, "all is freed")


@pytest.mark.parametrize("end", [psutil.Process.kill, psutil.Process.terminate])
def test_a_reference_outlives_supervisors(end: Callable[[psutil.Process], None]) -> None:
    reference = tasks.app.put(VALUES)
    for _ in range(2):
        end(supervisor())
        wait_until(all_gone, "it has ended")
        assert large.total(reference).result == VALUES.sum()
    reference.release()
    wait_until(lambda: count_of_blobs() == 0, "it is freed")


def test_a_script_without_supervisor_takes_its_blobs_away_when_it_ends() -> None:
    reference = tasks.app.put(VALUES)
    result = large.doubled(VALUES)
    result.wait()
    kill_supervisor()
    wait_until(all_gone, "it has ended")
    assert count_of_blobs() == 2
    tasks.close()
    assert count_of_blobs() == 1, "the result is kept"
    reference.release()
    tasks.app.purge()
    tasks.close()
    wait_until(all_gone, "all have ended")
    assert not os.path.exists(directory().memory)


def test_after_the_death_of_all_the_next_start_frees_what_nobody_needs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = (
        "import sys, numpy as np\nfrom tests import large, tasks\ntasks.use_fresh_configuration()\n"
        "kept = large.doubled(np.arange(float(1 << 17))); kept.wait(); held = tasks.app.put(np.ones(1 << 17))\n"
        "behind = [large.total_behind(sys.argv[1], np.ones(1 << 17)) for _ in range(5)]; tasks.app._cluster.sync()\n"
        "print(kept.invocation_id, tasks.app.report()['pid'], flush=True); input()\n"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", program, str(gate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        text=True,
    )
    assert script.stdout is not None
    invocation_id, pid = script.stdout.readline().split()
    os.kill(int(pid), signal.SIGSTOP)  # It sees nothing of the script's death.
    script.kill()
    script.wait()
    os.kill(int(pid), signal.SIGKILL)
    script.communicate()
    wait_until(all_gone, "all are dead")
    assert count_of_blobs() == 7
    started = tasks.add(1)  # It may have to wait for those that are taken up.
    tasks.app._cluster.sync()
    # The result, and the arguments of calls that are taken up.
    wait_until(lambda: count_of_blobs() == 6, "what the script held is freed")
    gate.touch()
    assert started.result == 1
    wait_until(lambda: count_of_blobs() == 1, "they have ended")
    assert tasks.app.get_invocation(invocation_id).result[3] == 6.0
    tasks.app.purge()
    wait_until(lambda: count_of_blobs() == 0, "a purge frees the rest")


def test_what_a_reboot_takes_is_said() -> None:
    from pynenc.exceptions import BlobLostError

    invocation = large.doubled(VALUES)
    invocation.wait()
    for name in list(directory().blobs()):
        Path(directory().path_in_memory(name)).unlink(missing_ok=True)  # Arguments are freed meanwhile.
    error = large.total(invocation).exception
    assert isinstance(error, BlobLostError)
    assert "lost when the machine was" in str(error)


def test_what_a_reboot_takes_from_the_cache_and_from_named_groups_is_run_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for runs in (1, 2, 4):
        assert large.cached_double(VALUES, str(log)).result[1] == 2.0
        group = large.doubled.parallelize([(VALUES,), (VALUES + 1,)], name="named")
        assert [values[0] for values in group.results] == [0.0, 2.0]
        if runs > 1:
            assert len(log.read_text()) == runs // 2
            for name in list(directory().blobs()):
                Path(directory().path_in_memory(name)).unlink(missing_ok=True)  # Arguments are freed meanwhile.


def test_calls_with_large_arguments_that_are_stopped_can_be_resumed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    group = large.total_behind.parallelize([(str(gate), VALUES * one) for one in range(6)])
    tasks.app._cluster.sync()
    tasks.app.stop_supervisor(now=True)
    wait_until(lambda: not os.path.exists(directory().memory), "it has moved them to files")
    assert count_of_blobs() == 6
    gate.touch()
    ids = [invocation.invocation_id for invocation in group]
    assert tasks.app.resume().wait()
    assert [tasks.app.get_invocation(one).result for one in ids] == [VALUES.sum() * one for one in range(6)]
    wait_until(lambda: count_of_blobs() == 0, "all is freed")
