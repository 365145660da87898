"""Deaths and orders that meet the cluster in the middle of something else: each was found by reading, or by a hunt.

| what happens | when | what comes of it |
| --- | --- | --- |
| a time limit, a forced cancel | its call begins or ends a wait just then | the call is ended |
| a worker dies | it imports a task's module | that call is blamed: `WorkerLostError` |
| the supervisor is killed | it was offered a call that must not run twice | `SupervisorLostError` |
| the supervisor is killed | it starts, in the place of a killed one | one more is started |
| the fork server is killed | it has just told of a dead worker | both are replaced, the supervisor goes on |
| a purge | retention is under way | the supervisor goes on |
| a task leaves its worker in a directory that is gone | others follow | they run |
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pynenc.exceptions import InvocationCancelledError, SupervisorLostError, TaskTimeoutError
from tests import odd, tasks
from tests.conftest import Finished, is_alive, own_processes, supervisor, wait_until


@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_a_call_that_waits_now_and_then_is_ended_whenever_that_is_due(end: str) -> None:
    task = odd.busy_with_calls if end == "timeout" else odd.busy_with_calls.with_options(timeout=60)
    for _ in range(4):
        call = task(20.0)
        if end == "timeout":
            assert isinstance(call.exception, TaskTimeoutError)
        else:
            wait_until(lambda: call.status.name in ("RUNNING", "PAUSED", "RESUMED"), "it runs")  # noqa: B023
            call.cancel(force=True)
            assert isinstance(call.exception, InvocationCancelledError)
        ran_s = call.history[-1].time - call.history[1].time
        assert ran_s < 10


def test_a_worker_that_dies_while_it_imports_is_blamed_on_the_call(run_python: Callable[..., Finished]) -> None:
    jobs = (
        "import os\nfrom pynenc import Pynenc, context\n"
        "if context.worker_of is not None:\n    os._exit(3)\n"
        "app = Pynenc()\n@app.task\ndef never() -> None: ...\n"
    )
    script = "from jobs import never\nprint(type(never().exception).__name__, never().exception)\n"
    finished = run_python({"jobs.py": jobs, "script.py": script}, "script.py")
    assert finished.code == 0, finished.err
    assert finished.out.startswith("WorkerLostError")
    assert "exited with code 3" in finished.out


def test_an_offered_call_that_must_not_run_twice_is_told_of_its_supervisors_death() -> None:
    tasks.add(1).result  # noqa: B018
    process = supervisor()
    process.suspend()
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    with pytest.raises(SupervisorLostError, match="rerun_on_worker_loss"):
        odd.registered_once(1).result  # noqa: B018
    killer.join()
    assert odd.registered_once(2).result == 2


def test_a_supervisor_that_is_killed_while_it_starts_is_replaced(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = tasks.wait_for(str(gate))
    tasks.app._cluster.sync()
    marker = os.environ["PYNENC_TEST_MARKER"]

    def kill_two() -> None:
        first = supervisor()
        known = {process.pid for process in own_processes(marker)}
        first.kill()
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = [one for one in own_processes(marker) if one.pid not in known]
            return bool(found)

        wait_until(is_there, "another one starts")
        for one in found:
            one.kill()
        gate.touch()

    killing = threading.Thread(target=kill_two)
    killing.start()
    assert call.get(40) == str(gate)
    killing.join()


def test_a_fork_server_that_dies_after_it_has_told_of_a_death_is_replaced() -> None:
    assert tasks.add(1, 2).result == 3
    process = supervisor()
    report = tasks.app.report()
    assert report is not None
    worker, fork_server = psutil.Process(report["workers"][0]["pid"]), psutil.Process(report["fork_server"])
    process.suspend()
    worker.kill()
    wait_until(lambda: not is_alive(worker), "it is dead")
    wait_until(lambda: not psutil.pid_exists(worker.pid), "the fork server has told of it")
    fork_server.kill()
    process.resume()
    assert list(tasks.add.parallelize([(x, 1) for x in range(50)]).results) == list(range(1, 51))
    assert supervisor().pid == process.pid


def test_a_purge_in_the_middle_of_retention_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__RETENTION", "1s")
    for _ in range(3):
        assert [one.result for one in [tasks.add(x, 2) for x in range(300)]] == list(range(2, 302))
        process = supervisor()
        assert tasks.add(1, 2).result == 3
        tasks.app.purge()
        assert tasks.add(1, 2).result == 3
        wait_until(lambda: sum(one.calls for one in tasks.app.state_backend.counts_by_task()) <= 1, "retention goes on")
        assert supervisor().pid == process.pid


def test_a_directory_that_is_gone_does_not_matter_to_the_next_call() -> None:
    tasks.app.conf.num_workers = 1
    assert odd.leave_in_lost_directory().result == "gone"
    assert odd.same(1).result == 1
    assert tasks.add(1, 2).result == 3
    assert odd.add(3, 4).result == 7
