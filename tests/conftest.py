"""No test leaves anything behind: processes, descriptors, threads, run directories."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests import PARTS, tasks
from tests.sharing import SharedSupervisors

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that is no terminal's has what it starts in the background ignore it, and so would the scripts of these tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)

GONE_S = 20.0
"""How long what a test used may take to end. Ends are waited for, so this bounds a failure, not a success."""

PROJECT = Path(__file__).resolve().parent.parent

_OTHERS = frozenset(psutil.process_iter())
"""What ran before any test did, this process among it, and threads of the kernel: too much to look at at each test's end."""


@pytest.hookimpl(trylast=True)  # After those that are slow have been left out.
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where all tests run on another Python already, run each test here, too, but with its part of a long list of parameters.

    The parts of two Pythons differ. What costs little is run with all parameters.
    """
    functions = [item.nodeid.partition("[")[0] for item in items]
    counts, seen = Counter(functions), Counter[str]()
    here, elsewhere = [], []
    for item, function in zip(items, functions, strict=True):
        parts = min(PARTS, counts[function]) if function.split("/")[1:2] in (["integration"], ["faults"]) else 1
        is_ours = seen[function] % parts == sys.version_info.minor % parts
        (here if is_ours else elsewhere).append(item)
        seen[function] += 1
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = here


def pytest_collection_finish() -> None:
    """What pytest itself keeps is no rubbish: it is not gone through again whenever a test looks for open descriptors."""
    gc.collect()
    gc.freeze()


class Finished(NamedTuple):
    """A program that has run."""

    code: int
    out: str
    err: str


def wait_until(done: Callable[[], bool], what: str, seconds: float = GONE_S) -> None:
    """Wait for a condition of other processes, which nothing here can be told of."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        threading.Event().wait(0.005)


class Lateness:
    """How much later than it asked a thread is woken here: what a machine with much else to do takes, nobody has promised.

    Attributes:
        worst_s: The latest that was seen while this was entered, in seconds.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lateness")

    def _watch(self) -> None:
        asked_s, is_over = 0.005, False
        while not is_over:
            began = time.monotonic()
            is_over = self._is_over.wait(asked_s)
            self.worst_s = max(self.worst_s, time.monotonic() - began - asked_s)

    def __enter__(self) -> Lateness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def of_all_s(self) -> float:
        """How late a message is at most that goes from process to process and back: each of them may be woken late."""
        return 6 * self.worst_s


def own_processes(marker: str) -> list[psutil.Process]:
    """Processes of pynenc that this test started, found by the environment variable that marks them."""
    found = []
    for process in psutil.process_iter():
        if process in _OTHERS:
            continue
        try:
            ours = process.environ().get("PYNENC_TEST_MARKER") == marker
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone() -> bool:
    """Whether no process of this test is left."""
    return not own_processes(os.environ["PYNENC_TEST_MARKER"])


def supervisor() -> psutil.Process:
    """The supervisor of the tests' app."""
    report = tasks.app.report()
    assert report is not None
    return psutil.Process(report["pid"])


def configure(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """Set fields of the configuration, in capitals, for this test."""
    for name, value in values.items():
        monkeypatch.setenv(f"PYNENC__{name}", str(value))
    tasks.use_fresh_configuration()


def talking_script(directory: Path) -> subprocess.Popen[str]:
    """Run `script.py` of a directory, which is told what to do and tells what it does, line by line."""
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def open_descriptors() -> int:
    gc.collect()
    return psutil.Process().num_fds()


HAS_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note for the fixtures of a test whether it failed."""
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report


@pytest.fixture(scope="session")
def shared_supervisors() -> Iterator[SharedSupervisors]:
    """Those of the tests that are marked as sharing theirs."""
    shared = SharedSupervisors()
    yield shared
    shared.end()


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test with a state directory and a temporary directory of its own, and see that nothing stays.

    Tests that are marked with `shares_supervisor`, and not with `own_supervisor`, have one of several supervisors in common.
    """
    if "unit" in request.node.nodeid.split("/")[1:2]:
        yield
        return
    shared: SharedSupervisors | None = None
    if request.node.get_closest_marker("shares_supervisor") and not request.node.get_closest_marker("own_supervisor"):
        shared = request.getfixturevalue("shared_supervisors")
        monkeypatch.setattr(tasks, "use_fresh_configuration", shared.use)
    marker = f"{os.getpid()}-{time.monotonic_ns()}"
    temporary = Path(tempfile.mkdtemp(prefix="pt-"))  # Short: sockets have short paths.
    monkeypatch.setenv("PYNENC_TEST_MARKER", marker)
    # A module that a test edits within the second, to the same length, would be run as it was compiled before.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYNENC__STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYNENC__NUM_WORKERS", "2")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    tasks.use_fresh_configuration()
    before = open_descriptors()
    yield
    tasks.close()
    try:
        wait_until(lambda: not own_processes(marker), "processes of the test have ended")
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("pynenc")]
        assert not threads, f"threads were left: {threads}"
        assert open_descriptors() <= before, "descriptors were left open"
        left = sorted(path.name for path in temporary.iterdir())
        assert not left, f"files were left in the temporary directory: {left}"
        if shared is not None:
            wait_until(lambda: not shared.left(), "calls and children of workers have ended")
    except BaseException:
        request.node.stash[HAS_FAILED] = True
        raise
    finally:
        if shared is not None and request.node.stash.get(HAS_FAILED, False):
            shared.discard()
        for process in own_processes(marker):  # A test that failed may have calls that nobody will let go on.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(temporary)


@pytest.fixture
def lateness() -> Iterator[Lateness]:
    """Watches how busy this machine is while a test runs."""
    with Lateness() as watched:
        yield watched


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., Finished]:
    """Run a small project as a user would: its files in a directory, a command there, a bound on its time."""

    def run(files: dict[str, str], *arguments: str, timeout: float = 40, **environment: str) -> Finished:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        for name, text in files.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        finished = subprocess.run(
            [sys.executable, *arguments],
            cwd=project,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run
