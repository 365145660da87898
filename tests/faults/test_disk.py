"""What becomes of calls when the disk or the database fails: they wait, or one error says why. What was delivered stays.

| fault | what the script sees |
| --- | --- |
| disk full, database locked, for a moment | a pause and a warning |
| the same, for longer than `disk_timeout_s` | SupervisorLostError that says why; what was committed is readable |
| damaged database, at the start or while it is used | a warning: it is set aside, a new one is begun |
| state directory deleted | a warning, a new one; SupervisorLostError for what was lost with it |
| read-only disk, later schema | one error; nothing is touched |
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pynenc import InvocationStatus
from pynenc.client import launch
from pynenc.client.paths import paths_of
from pynenc.exceptions import RunnerError, StateBackendError, SupervisorLostError, TaskTimeoutError
from tests import rules, tasks
from tests.conftest import Finished, own_processes, wait_until

MB = 1_000_000


def report() -> dict[str, object]:
    found = tasks.app.report()
    assert found is not None
    return found


def nothing_runs() -> None:
    marker = os.environ["PYNENC_TEST_MARKER"]
    wait_until(lambda: not own_processes(marker), "all processes have ended")


def end() -> None:
    """Disconnect, and wait until the supervisor has ended and closed its database."""
    tasks.close()
    nothing_runs()


def use(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """Use these values of the state backend's configuration."""
    for name, value in fields.items():
        monkeypatch.setenv(f"PYNENC__CONFIGSTATEBACKEND__{name.upper()}", str(value))


def warnings_in(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tests.db"


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 8 MB with the state directory on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        monkeypatch.setenv("PYNENC__STATE_DIR", str(disk / "state"))
        tasks.use_fresh_configuration()
        yield disk
        end()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that a disk has."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return filler


# A database that takes no commit.


def test_results_wait_for_a_full_disk_to_have_room(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tasks.echo("before").result == "before"
    filler = fill(small_disk)
    invocations = [tasks.echo(os.urandom(100_000)) for _ in range(8)]
    assert not invocations[0].wait(timeout=1.5)
    assert "its disk is full" in str(report()["waits_for_disk"])
    command = [sys.executable, "-m", "pynenc", "--app", "tests.tasks.app", "status"]
    asks = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert asks.stderr is not None
    assert "nothing is committed just now" in asks.stderr.readline()
    filler.unlink()
    assert "tests.tasks.echo" in asks.communicate(timeout=40)[0]
    assert [len(one.get(timeout=30)) for one in invocations] == [100_000] * 8
    assert tasks.app.get_invocation(invocations[7].invocation_id).status is InvocationStatus.SUCCESS
    assert report()["waits_for_disk"] == ""
    assert "make room on that disk" in warnings_in(caplog)
    assert "takes commits again" in warnings_in(caplog)


def test_a_disk_that_stays_full_ends_with_one_error_and_keeps_what_was_delivered(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, disk_timeout_s=0.3)
    before = tasks.echo("before")
    assert before.result == "before"
    fill(small_disk)
    invocation = tasks.echo([os.urandom(100_000) for _ in range(10)])  # Each of them is small enough for the database.
    with pytest.raises(
        SupervisorLostError, match=r"tests\.db did not take a commit: its disk is full .*disk_timeout_s"
    ):
        invocation.get(timeout=30)
    nothing_runs()
    assert tasks.app.get_invocation(before.invocation_id).result == "before"


def test_a_disk_that_is_full_from_the_start_is_told_of(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(RunnerError, match=r"state directory .* cannot be used: .*No space left.* make room"):
        tasks.add(1, 2)


def test_another_programs_lock_stops_neither_time_limits_nor_questions(database: Path) -> None:
    assert tasks.add(1, 2).result == 3
    other = sqlite3.connect(database, isolation_level=None)
    limited = rules.run_long("sleep")
    tasks.app._cluster.sync()
    other.execute("BEGIN IMMEDIATE")
    invocations = [tasks.add(x, 1) for x in range(100)]
    wait_until(lambda: "locked" in str(report()["waits_for_disk"]), "the commit is tried again")
    wait_until(lambda: not any(w["running"] for w in report()["workers"]), "the time limit is kept")  # type: ignore[attr-defined]
    assert not invocations[0].wait(timeout=0)
    other.execute("ROLLBACK")
    other.close()
    assert [one.get(timeout=30) for one in invocations] == list(range(1, 101))
    with pytest.raises(TaskTimeoutError):
        limited.get(timeout=30)


def test_dependencies_and_nested_calls_go_on_after_a_lock(database: Path) -> None:
    assert tasks.add(1, 2).result == 3
    other = sqlite3.connect(database, isolation_level=None)
    for _ in range(2):
        other.execute("BEGIN IMMEDIATE")
        total = tasks.add(tasks.add(tasks.add(1, 1), 1), tasks.add(2, 2))
        fibonacci = rules.fibonacci(8)
        group = tasks.add.parallelize([(x, 1) for x in range(1000)])
        wait_until(lambda: bool(report()["waits_for_disk"]), "the commit is tried again")
        other.execute("ROLLBACK")
        assert (total.get(timeout=30), fibonacci.get(timeout=30)) == (7, 21)
        assert list(group.results) == list(range(1, 1001))
    other.close()


def test_a_client_that_comes_while_the_database_is_locked_waits_and_is_told_why(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tasks.add(1, 2).result == 3
    end()
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    logger = logging.getLogger("pynenc.tests")

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if other.in_transaction:
                other.execute("ROLLBACK")

    release = Release()
    logger.addHandler(release)
    try:
        assert tasks.add(1, 2).get(timeout=30) == 3  # Only the warning lets it go on.
    finally:
        logger.removeHandler(release)
        other.close()
    assert "another program holds it locked" in warnings_in(caplog)


def test_a_script_that_submits_more_than_memory_holds_waits_for_the_disk(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYNENC__CONFIGBROKER__QUEUED_BYTES", str(MB))
    assert tasks.add(1, 2).result == 3
    supervisor = psutil.Process(int(str(report()["pid"])))
    before = supervisor.memory_info().rss
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    script = (
        "from tests import tasks\n"
        "print(sum(len(v) for v in tasks.echo.parallelize([(bytes(100_000),) for _ in range(400)]).results))\n"
    )
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    wait_until(lambda: bool(report()["waits_for_disk"]), "the commit is tried again")
    for _ in range(20):  # Each asks the supervisor, and is a turn of its loop.
        assert not tasks.app._cluster.wait_until(lambda: client.poll() is not None, timeout=0.02)
        assert supervisor.memory_info().rss < before + 20 * MB
    other.execute("ROLLBACK")
    other.close()
    assert client.communicate(timeout=40)[0] == f"{40 * MB}\n"


# A damaged database.


def damaged(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if ".corrupt-" in path.name)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "half a page"])
def test_a_damaged_database_is_set_aside_unchanged(
    damage: str, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tasks.echo.parallelize([(os.urandom(5000),) for _ in range(100)])
    assert len(list(first.results)) == 100
    end()
    if damage == "garbage":
        database.write_bytes(b"this is no database" * 1000)
    else:
        os.truncate(database, 100 if damage == "half a page" else database.stat().st_size // 2)
    found = database.read_bytes()
    assert tasks.add(1, 2).result == 3
    (aside,) = damaged(database.parent)
    assert aside.read_bytes() == found
    assert f"the database was damaged and is set aside as {aside}" in warnings_in(caplog)
    caplog.clear()
    end()
    assert tasks.add(1, 2).result == 3
    assert warnings_in(caplog) == ""
    assert damaged(database.parent) == [aside]


def test_damage_that_is_found_later_is_handed_to_another_supervisor(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(tasks.add.parallelize([(x, 1) for x in range(1000)]).results) == list(range(1, 1001))
    end()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'results'").fetchone()
    with open(database, "r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(os.urandom(page_bytes))
    assert tasks.add(20, 22).get(timeout=30) == 42
    assert list(tasks.add.parallelize([(x, 1) for x in range(1000)]).results) == list(range(1, 1001))
    assert tasks.app.get_invocation(tasks.add(1, 1).invocation_id).result == 2
    aside = damaged(database.parent)
    assert "it is damaged (database disk image is malformed)" in warnings_in(caplog)
    assert f"it was set aside as {aside[0]}" in warnings_in(caplog)
    with contextlib.closing(sqlite3.connect(aside[0])) as connection:  # With its log, if there is one.
        assert connection.execute("SELECT COUNT(*) FROM batches").fetchone()[0] >= 2


def test_a_log_of_garbage_is_set_aside_and_the_database_used(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    invocation = tasks.add(1, 2)
    assert invocation.result == 3
    end()
    log = database.with_name("tests.db-wal")
    log.write_bytes(b"garbage" * 1000)
    assert tasks.app.get_invocation(invocation.invocation_id).result == 3
    assert tasks.add(1, 2).result == 3
    (aside,) = damaged(database.parent)
    assert aside.read_bytes() == b"garbage" * 1000
    assert "the log of the database was damaged" in warnings_in(caplog)


def test_a_database_of_a_later_schema_is_refused_and_not_touched(database: Path) -> None:
    database.parent.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 77")
    found = database.read_bytes()
    with pytest.raises(
        RunnerError, match=r"could not start: .*schema version 77, and this pynenc knows \d+: a later pynenc"
    ):
        tasks.add(1, 2)
    with pytest.raises(StateBackendError, match="schema version 77"):
        tasks.app.get_invocation("1-0-0")
    assert database.read_bytes() == found
    nothing_runs()


def test_another_programs_database_is_refused_and_not_touched(database: Path) -> None:
    database.parent.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    found = database.read_bytes()
    with pytest.raises(RunnerError, match="the database of another program: set state_dir"):
        tasks.add(1, 2)
    assert database.read_bytes() == found


# A state directory that is not there.


def test_a_deleted_state_directory_is_begun_anew(
    database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tasks.add(1, 2).result == 3
    gate = tmp_path / "gate"
    invocations = []
    for _ in range(20):  # The client keeps a batch until it hears, every 16 batches, that it is committed.
        invocations.append(tasks.wait_for(str(gate)))
        tasks.app._cluster.sync()
    first = report()["pid"]
    shutil.rmtree(database.parent)
    with pytest.raises(SupervisorLostError, match="was deleted or moved away"):
        invocations[0].get(timeout=30)
    gate.touch()
    assert invocations[19].get(timeout=30) == str(gate)
    assert report()["pid"] != first
    marker = os.environ["PYNENC_TEST_MARKER"]
    wait_until(lambda: all(one.pid != first for one in own_processes(marker)), "the first supervisor has ended")
    assert "a new database is begun" in warnings_in(caplog)
    added = tasks.add(2, 2)
    assert added.result == 4
    assert tasks.app.get_invocation(added.invocation_id).result == 4
    end()
    assert [path.name for path in database.parent.glob("tests.db*")] == ["tests.db"]


def test_a_supervisor_that_stays_ends_when_its_state_directory_is_deleted(database: Path) -> None:
    database.parent.mkdir(mode=0o700)
    tasks.app.start_supervisor(str(database.parent / "log"))
    shutil.rmtree(database.parent)
    nothing_runs()
    assert not database.parent.exists()


def test_a_database_on_a_read_only_disk_is_read_and_not_written(small_disk: Path) -> None:
    before = tasks.add(1, 2)
    assert before.result == 3
    end()
    command = ["mount", "-o", "remount,ro", str(small_disk)]  # It is busy until the last process is really gone.
    wait_until(lambda: not subprocess.run(command, capture_output=True).returncode, "the disk is read-only")
    assert tasks.app.get_invocation(before.invocation_id).result == 3
    with pytest.raises(RunnerError, match=r"Read-only file system.*PYNENC__STATE_DIR"):
        tasks.add(1, 2)
    nothing_runs()


def test_a_disk_that_becomes_read_only_is_told_of(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, disk_timeout_s=0.2)
    assert tasks.add(1, 2).result == 3
    pid = int(str(report()["pid"]))
    resource = pytest.importorskip("resource")
    # As much as a limit on the size of files does: writing fails, and reading does not.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(SupervisorLostError, match=r"tests\.db did not take a commit"):
        tasks.echo(os.urandom(100_000)).get(timeout=30)


def test_a_home_without_write_permission_gives_one_error_that_names_the_setting(
    run_python: Callable[..., Finished], tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    script = (
        "import os, shutil\n"
        "os.environ.pop('PYNENC__STATE_DIR')\n"
        "from jobs import app, add\n"
        "add(1, 2).result  # Somebody else may not be able to read what has to be imported.\n"
        "app.close()\n"
        "while os.path.exists('.pynenc'):\n"
        "    shutil.rmtree('.pynenc', ignore_errors=True)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    add(1, 2)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
        "print(app.report())\n"
    )
    jobs = "from pynenc import Pynenc\napp = Pynenc()\n@app.task\ndef add(x, y):\n    return x + y\n"
    (tmp_path / "project").mkdir(mode=0o755)
    for path in [tmp_path, *tmp_path.parents][:3]:
        path.chmod(0o755)
    finished = run_python({"jobs.py": jobs, "script.py": script}, "script.py")
    assert finished.err == ""
    first, second = finished.out.splitlines()
    assert first.startswith("RunnerError the state directory ")
    assert "Permission denied" in first
    assert "PYNENC__STATE_DIR" in first
    assert second == "None"


@pytest.mark.parametrize("temporary", ["missing", "x" * 120, "file"])
def test_a_temporary_directory_that_takes_no_socket_is_done_without(
    temporary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / temporary
    if temporary == "file":
        directory.touch()
    elif temporary != "missing":
        directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    assert tasks.add(1, 2).result == 3


def test_a_file_in_place_of_the_state_directory_is_told_of(database: Path) -> None:
    database.parent.touch()
    with pytest.raises(RunnerError, match=r"state directory .* cannot be used.*PYNENC__STATE_DIR"):
        tasks.add(1, 2)


def test_nothing_is_needed_of_the_directory_for_shared_memory(tmp_path: Path) -> None:
    alone = ["unshare", "--mount", "sh", "-c", 'umount /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("/dev/shm cannot be taken away here")
    script = "from tests import tasks\nprint(sum(tasks.add.parallelize([(x, 1) for x in range(3000)]).results))\n"
    finished = subprocess.run([*alone, sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
    assert (finished.stdout, finished.stderr) == ("4501500\n", "")


# Descriptors that run out.


def test_a_supervisor_without_descriptors_refuses_and_goes_on() -> None:
    assert tasks.add(1, 2).result == 3
    supervisor = psutil.Process(int(str(report()["pid"])))
    address = launch.find(paths_of(tasks.app.conf.state_path, "tests"))
    assert address is not None
    address[0].close()
    _, hard = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (supervisor.num_fds() + 4, hard))
    strangers = []
    try:
        while True:
            stranger = launch.connect(address[1])
            assert stranger is not None
            strangers.append(stranger)
            if b"ulimit -n" in stranger.recv(4096):
                break
        assert 1 < len(strangers) < 10
        assert tasks.add(1, 2).result == 3
        before = sum(supervisor.cpu_times()[:2])
        assert not tasks.app._cluster.wait_until(lambda: False, timeout=0.5)
        assert sum(supervisor.cpu_times()[:2]) - before < 0.1
    finally:
        for stranger in strangers:
            stranger.close()
    assert tasks.add(1, 2).result == 3
    another = launch.connect(address[1])
    assert another is not None
    with another:
        assert b"ulimit -n" not in another.recv(4096)


SCRIPT = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, int(sys.argv[2])))
from jobs import app, add
try:
    print([invocation.result for invocation in [add(x, 1) for x in range(50)]] == list(range(1, 51)))
    print(sum(add.parallelize([(x, 1) for x in range(3000)]).results))
except Exception as error:
    print(type(error).__name__, error)
"""
JOBS = "from pynenc import Pynenc\napp = Pynenc()\n@app.task\ndef add(x, y):\n    return x + y\n"


def test_sixty_four_descriptors_are_enough(run_python: Callable[..., Finished]) -> None:
    finished = run_python({"jobs.py": JOBS, "script.py": SCRIPT}, "script.py", "64", "64")
    assert finished == (0, "True\n4501500\n", "")


def test_a_supervisor_raises_its_limit_as_far_as_it_may(run_python: Callable[..., Finished]) -> None:
    finished = run_python({"jobs.py": JOBS, "script.py": SCRIPT}, "script.py", "30", "64")
    assert finished == (0, "True\n4501500\n", "")


@pytest.mark.parametrize("limit", [24, 9])
def test_a_limit_that_is_too_low_is_told_of(limit: int, run_python: Callable[..., Finished]) -> None:
    finished = run_python({"jobs.py": JOBS, "script.py": SCRIPT}, "script.py", str(limit), str(limit))
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.startswith("RunnerError")
    assert "ulimit -n" in finished.out
