"""A real supervisor, and connections that do not speak as they should: they are closed, counted, and told of; all others go on.

| who | sends | what happens |
| --- | --- | --- |
| a stranger | anything but a proof of the key | closed at once, its open files too |
| a stranger | nothing | closed after ten seconds |
| a client | a frame that is none, or whose fields are not what they should be | closed, and told why |
| a client | arguments that are no pickle | these calls fail |
| a worker | garbage | it is ended and replaced |
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket
import tracemalloc
from pathlib import Path

import psutil
import pytest

from pynenc import serializer
from pynenc.client.connection import Connection
from pynenc.client.launch import Address, connect
from pynenc.client.paths import paths_of
from pynenc.exceptions import ProtocolError, RunnerError, SerializationError, SupervisorLostError, WorkerLostError
from pynenc.protocol.frames import HEADER, MAX_BODY_BYTES, MAX_UNPROVEN_BODY_BYTES, FrameReader, frame
from pynenc.protocol.messages import Batch, Kind, Packing, Results, first_batch_of, json_frame
from pynenc.supervisor.service import GREETING_S, MAX_STRANGERS
from tests import tasks
from tests.conftest import PROJECT, wait_until
from tests.fuzz import canary
from tests.fuzz.frames import Frames


def paths():  # type: ignore[no-untyped-def]
    return paths_of(tasks.app.conf.state_path, tasks.app.app_id)


def address() -> Address:
    """Where the supervisor of this test listens, and its key."""
    assert tasks.add(1, 2).result == 3
    fields = json.loads(Path(paths().run_file).read_text())
    return Address(fields["address"], bytes.fromhex(fields["key"]))


def connected(to: Address) -> socket.socket:
    made = connect(to)
    assert made is not None
    made.settimeout(10)
    return made


def refused() -> int:
    report = tasks.app.report()
    assert report is not None
    return int(report["refused"])


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes it, after what it had to say."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def garbage_of_strangers(chance: random.Random, count: int) -> list[bytes]:
    frames, proof = Frames(chance), frame(Kind.PROOF, bytes(96), b'{"version": 1, "pid": 1, "is_worker": false}')
    deep = frame(Kind.PROOF, bytes(96), b"[" * (MAX_UNPROVEN_BODY_BYTES - 96))
    made = [b"\0" * 5, b"GET / HTTP/1.1\r\n\r\n", deep, HEADER.pack(MAX_BODY_BYTES, Kind.PROOF), proof]
    while len(made) < count:
        of_client = chance.choice([proof, frames.of_client(1, [])])
        mutated = frames.mutated(of_client)
        # A frame that has not come to its end is waited for, for ten seconds.
        length = HEADER.unpack_from(mutated)[0]
        if length <= len(mutated) - HEADER.size or length > MAX_UNPROVEN_BODY_BYTES:
            made.append(mutated)
    return made


def test_strangers_are_closed_counted_and_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(canary.VARIABLE, str(tmp_path / "sang"))
    there = address()
    before, report = refused(), tasks.app.report()
    assert report is not None
    supervisor = psutil.Process(report["pid"])
    files = supervisor.num_fds()
    sent = garbage_of_strangers(random.Random(1), 300)
    for garbage in sent:
        with connected(there) as stranger:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(garbage)
            assert is_closed(stranger), garbage[:100]
        assert tasks.add(1, 2).result == 3
    assert refused() == before + len(sent)
    wait_until(lambda: supervisor.num_fds() <= files, "their files are closed")
    assert tasks.app.report()["pid"] == supervisor.pid  # type: ignore[index]
    log = Path(paths().log).read_text().splitlines()
    told = [line for line in log if "refused connection" in line]
    assert 100 <= len(told) < 120
    assert all("of a stranger: " in line and len(line) < 300 for line in told)
    assert not any("Traceback" in line for line in log)
    assert not (tmp_path / "sang").exists(), "something was unpickled"


def test_files_that_strangers_hand_over_are_closed_and_bounded() -> None:
    there = address()
    report = tasks.app.report()
    assert report is not None
    supervisor = psutil.Process(report["pid"])
    files = supervisor.num_fds()
    with connected(there) as stranger:
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                socket.send_fds(stranger, [HEADER.pack(4000, Kind.PROOF)[:1]], [0] * 4)
        assert is_closed(stranger)
    wait_until(lambda: supervisor.num_fds() <= files, "their files are closed")
    assert refused() == 1


@pytest.mark.slow
def test_a_stranger_that_sends_nothing_is_closed_after_a_while() -> None:
    there = address()
    with connected(there) as stranger:
        stranger.settimeout(3 * GREETING_S)
        assert is_closed(stranger)
    assert refused() == 1


def test_more_strangers_than_may_wait_do_not_keep_clients_out() -> None:
    there = address()
    with contextlib.ExitStack() as crowd:
        for _ in range(MAX_STRANGERS):
            crowd.enter_context(connected(there))
        late = crowd.enter_context(connected(there))
        assert is_closed(late)
        assert tasks.add(1, 2).result == 3
        assert refused() == 1


def test_clients_that_send_garbage_are_told_why_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(canary.VARIABLE, str(tmp_path / "sang"))
    there, chance = address(), random.Random(2)
    pid = tasks.app.report()["pid"]  # type: ignore[index]
    frames, told = Frames(chance), 0
    for _ in range(60):
        client = Connection(connected(there), there, lambda kind, body: None, False)
        try:
            for key in (1, 2, 3):
                client.send(frames.task(key))
            batches: list[int] = []
            for _ in range(200):
                client.send(frames.mutated(frames.of_client(client.client, batches)))
            client.wait_until(lambda: False, 1.0)
        except SupervisorLostError as error:
            told += "the supervisor closed the connection: " in str(error)
        finally:
            client.close()
        assert tasks.add(1, 2).get(20) == 3
    assert tasks.app.report()["pid"] == pid  # type: ignore[index]
    assert told > 10
    assert refused() >= 50
    log = Path(paths().log).read_text()
    assert "of client " in log
    assert "Traceback" not in log
    assert not (tmp_path / "sang").exists(), "something was unpickled"
    assert tasks.app.stop_supervisor(now=True)  # What they left behind may wait for things that never come.


@pytest.mark.parametrize("task", [tasks.add, tasks.slowly_double], ids=["one by one", "side by side"])
def test_arguments_that_are_no_pickle_fail_their_calls(task) -> None:  # type: ignore[no-untyped-def]
    there = address()
    pid = tasks.app.report()["pid"]  # type: ignore[index]
    outcomes: list[int] = []

    def take(kind: int, body: bytes) -> None:
        if kind == Kind.FAILURE:
            outcomes.append(1)
        elif kind == Kind.RESULTS:
            results = Results.from_body(body)
            outcomes.extend([0] * (results.stop - results.first))

    client = Connection(connected(there), there, take, False)
    surroundings = {"sys_path": [str(PROJECT)], "cwd": os.getcwd()}
    options = task.conf.rules(task.is_async)
    client.send(json_frame(Kind.TASK, key=1, task_id=task.task_id, options=options, context=surroundings))
    number = first_batch_of(client.client)
    for payload in (b"no pickle", pickle.dumps([(1,)]), pickle.dumps(7)):
        for packing in (Packing.COLUMN, Packing.COLUMNS):
            outcomes.clear()
            number += 1
            client.send(Batch(number, 1, 20, 0, 0, 1.0, packing, payload).to_frame())
            assert client.wait_until(lambda: len(outcomes) == 20, 30), (payload, packing)
            assert sum(outcomes) >= 18
    client.close()
    assert tasks.app.report()["pid"] == pid  # type: ignore[index]


def test_a_worker_that_sends_garbage_is_replaced() -> None:
    def babble(_: int) -> None:
        import gc
        import time

        from pynenc.worker.base import BaseWorker

        worker = next(one for one in gc.get_objects() if isinstance(one, BaseWorker))
        worker.connection.sendall(b"\x05\0\0\0\xffhello")
        time.sleep(60)

    assert isinstance(tasks.apply(babble, 0).exception, WorkerLostError)
    assert refused() == 2  # It was tried once more.
    assert tasks.add(1, 2).result == 3


def test_a_length_that_is_announced_takes_no_memory() -> None:
    reader = FrameReader()
    tracemalloc.start()
    try:
        assert reader.feed(HEADER.pack(MAX_BODY_BYTES, 1) + b"x" * 100) == []
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    with pytest.raises(ProtocolError, match="announces"):
        FrameReader().feed(HEADER.pack(MAX_BODY_BYTES + 1, 1))


def test_arguments_that_are_too_large_are_refused_where_the_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serializer, "MAX_VALUE_BYTES", 1000)
    with pytest.raises(
        TypeError, match=r"argument 'value': str is 2,0\d\d bytes when pickled, and at most 1,000 travel"
    ):
        tasks.echo("x" * 2000)
    with pytest.raises(TypeError, match="pass it in smaller pieces, or as a path to a file"):
        tasks.echo.parallelize([("x",), ("x" * 2000,)])
    assert tasks.echo("x").result == "x"


def test_a_result_that_is_too_large_fails_its_call() -> None:
    def grow(_: int) -> str:
        from pynenc import serializer

        serializer.MAX_VALUE_BYTES = 1000
        return "x" * 2000

    error = tasks.apply(grow, 0).exception
    assert isinstance(error, SerializationError)
    assert "at most 1,000 travel" in str(error)


def test_what_an_exception_says_is_bounded_and_may_be_no_text() -> None:
    def fail(_: int) -> None:
        raise ValueError("\udc80" + "x" * 5_000_000)

    invocation = tasks.apply(fail, 0)
    assert isinstance(invocation.exception, ValueError)
    again = tasks.app.get_invocation(invocation.invocation_id)
    assert isinstance(again.exception, ValueError)


def test_a_state_directory_that_anybody_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("PYNENC__STATE_DIR", str(shared))
    tasks.use_fresh_configuration()
    with pytest.raises(RunnerError, match="others can write"):
        tasks.add(1, 2)


def test_a_state_directory_of_another_user_is_neither_used_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invocation = tasks.add(1, 2)
    assert invocation.result == 3
    tasks.close()
    tasks.use_fresh_configuration()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(RunnerError, match="belongs to another user"):
        tasks.add(1, 2)
    with pytest.raises(RunnerError, match="belongs to another user"):
        tasks.app.get_invocation(invocation.invocation_id)


def test_only_this_user_can_reach_what_lies_on_the_disk() -> None:
    there = address()
    for path, mode in [
        (Path(there.path).parent, 0o700),
        (Path(there.path), 0o600),
        (Path(paths().run_file), 0o600),
        (Path(paths().database), 0o600),
        (Path(tasks.app.conf.state_path), 0o700),
    ]:
        assert path.stat().st_mode & 0o777 == mode, path
