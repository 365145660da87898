"""What `app.close()` leaves: calls go on, and their results come when somebody asks for them, in whichever thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynenc.exceptions import BlobLostError, RunnerError, SupervisorLostError
from pynenc.invocation.base_invocation import BaseInvocationGroup
from tests import large, tasks
from tests.conftest import all_gone, configure, wait_until

THREADS = 6
ROUNDS = 6


def test_results_of_calls_that_still_run_come_after_closing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = tasks.wait_for(str(gate))
    group = tasks.note_behind.parallelize([(str(gate), str(tmp_path / "marks"), x) for x in range(5)])
    tasks.app.close()
    again = tasks.app.get_invocation(call.invocation_id)
    gate.touch()
    assert again.result == call.result == str(gate)
    assert list(group.results) == list(range(5))
    assert sorted((tmp_path / "marks").read_text().split()) == ["0", "1", "2", "3", "4"]


def test_results_of_calls_that_ended_meanwhile_come_from_the_state_backend() -> None:
    call, group = tasks.add(1, 2), tasks.add.parallelize([(x, 1) for x in range(3_000)])
    tasks.app.close()
    wait_until(all_gone, "the supervisor has done all and ended")
    assert call.result == 3
    assert list(group.results) == list(range(1, 3_001))
    assert all_gone()


def test_callbacks_and_await_after_closing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    called, awaited = tasks.wait_for(str(gate)), tasks.wait_for(str(gate))
    tasks.app.close()
    was_called = threading.Event()
    called.add_done_callback(lambda done: was_called.set())

    async def wait_here() -> str:
        asyncio.get_running_loop().call_soon(gate.touch)
        return await awaited

    assert asyncio.run(wait_here()) == str(gate)
    assert was_called.wait(30)


def test_whoever_awaits_a_call_when_the_app_is_closed_is_told(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = tasks.wait_for(str(gate))

    async def close_meanwhile() -> None:
        asyncio.get_running_loop().call_later(0.01, tasks.app.close)
        await call

    with pytest.raises(SupervisorLostError, match=r"closed by app\.close"):
        asyncio.run(close_meanwhile())
    gate.touch()
    assert call.result == str(gate)


def test_whoever_waits_for_calls_that_nobody_runs_any_more_is_told(tmp_path: Path) -> None:
    calls = [tasks.begin_and_wait_for(str(tmp_path / f"begun{x}"), str(tmp_path / "never")) for x in range(2)]
    wait_until((tmp_path / "begun0").exists, "it runs")
    report = tasks.app.report()
    assert report is not None
    tasks.app.close()
    os.kill(report["pid"], signal.SIGTERM)
    wait_until(all_gone, "the supervisor has ended")
    for call in calls:
        with pytest.raises(RunnerError, match="pynenc resume runs them"):
            call.get(timeout=30)


def test_a_value_that_was_put_is_released_with_the_app_and_the_calls_that_use_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    shared = tasks.app.put(np.ones(1 << 18))
    under_way = large.total_behind(str(gate), shared)
    tasks.app.close()
    assert large.total(shared).get(timeout=60) == 1 << 18
    gate.touch()
    assert under_way.result == 1 << 18
    tasks.app.close()
    wait_until(all_gone, "nobody refers to it, and the supervisor has ended")
    with pytest.raises(BlobLostError, match="once the app was closed"):
        large.total(shared).get(timeout=60)


def in_threads(act: Callable[[int], object]) -> list[object]:
    """What is returned or raised in several threads that begin together."""
    barrier = threading.Barrier(THREADS)
    outcomes: list[object] = [None] * THREADS

    def run(number: int) -> None:
        barrier.wait()
        try:
            outcomes[number] = act(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_threads_that_look_for_the_same_call_at_once_all_get_its_result(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    for _ in range(ROUNDS):
        found = tasks.wait_for(str(gate)).invocation_id
        tasks.app.close()
        looked = threading.Barrier(THREADS, action=gate.touch)

        def look(number: int, found: str = found, looked: threading.Barrier = looked) -> object:
            invocation = tasks.app.get_invocation(found)
            looked.wait()
            return invocation.get(timeout=60)

        assert in_threads(look) == [str(gate)] * THREADS
        gate.unlink()


def test_calls_of_threads_while_another_one_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made before or after, and connect again; only who waits just then is told that it was closed."""
    configure(monkeypatch, NUM_WORKERS=2)
    has_ended = threading.Event()

    def close() -> None:
        while not has_ended.is_set():
            tasks.app.close()

    def call(number: int) -> object:
        for turn in range(ROUNDS):
            single, group = tasks.add(turn, number), tasks.add.parallelize([(turn, x) for x in range(50)])
            assert result_of(partial(single.get, timeout=60)) == turn + number
            assert result_of(partial(all_of, group)) == list(range(turn, turn + 50))
            if number < 2:
                array = np.full(1 << 15, float(turn))
                assert result_of(large.total(array).get) == turn * (1 << 15)
        return "all"

    def all_of(group: BaseInvocationGroup[Any, int]) -> list[int]:
        return list(group.results)

    def result_of(get: Callable[[], object]) -> object:
        while True:
            try:
                return get()
            except RunnerError as error:
                if "connection was closed" not in str(error):
                    raise

    closing = threading.Thread(target=close)
    closing.start()
    try:
        outcomes = in_threads(call)
    finally:
        has_ended.set()
        closing.join()
    assert outcomes == ["all"] * THREADS
