"""Workers and supervisors are killed at random while threads make calls of all kinds: every result comes, and is right."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from tests import concurrent_tasks, rules, tasks

SECONDS = 6.0
KILLERS_S = (0.05, 0.8)
"""Between two kills lie so many seconds at random."""

PATIENCE_S = 50.0
SURVIVE = {"max_worker_losses": 100}

add = tasks.add.with_options(**SURVIVE)
sleep_for = tasks.sleep_for.with_options(**SURVIVE)
fibonacci = rules.fibonacci.with_options(**SURVIVE)
length = concurrent_tasks.length.with_options(**SURVIVE)


def group() -> None:
    assert list(add.parallelize([(x, 1) for x in range(3000)]).results) == list(range(1, 3001))


def single_calls() -> None:
    assert [one.get(PATIENCE_S) for one in [add(x, 2) for x in range(200)]] == list(range(2, 202))


def calls_that_take_a_moment() -> None:
    assert list(sleep_for.parallelize([(0.002, x) for x in range(200)]).results) == list(range(200))


def calls_that_wait_for_calls() -> None:
    assert fibonacci(8).get(PATIENCE_S) == 21


def results_as_arguments() -> None:
    assert add(add(sleep_for(0.05, 1), 1), add(sleep_for(0.05, 2), 2)).get(PATIENCE_S) == 6


def stream() -> None:
    assert list(add.stream(((x, 1) for x in range(300)), in_flight=8)) == list(range(1, 301))


def coroutines() -> None:
    assert list(length.parallelize([(b"x" * x,) for x in range(50)]).results) == list(range(50))


WORK: list[Callable[[], None]] = [
    group,
    single_calls,
    calls_that_take_a_moment,
    calls_that_wait_for_calls,
    results_as_arguments,
    stream,
    coroutines,
]


class Killer(threading.Thread):
    """Kills one worker or the supervisor from time to time, until it is stopped."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.kills = {"supervisor": 0, "worker": 0}
        self.stopped = threading.Event()
        self._chance = chance

    def run(self) -> None:
        while not self.stopped.wait(self._chance.uniform(*KILLERS_S)):
            with contextlib.suppress(Exception):  # What it asks about may just have died.
                report = tasks.app.report()
                if report is not None:
                    self._kill(report)

    def _kill(self, report: dict) -> None:  # type: ignore[type-arg]
        what = self._chance.choice(["supervisor", "worker"])
        victim = report if what == "supervisor" else self._chance.choice(report["workers"])
        psutil.Process(victim["pid"]).kill()
        self.kills[what] += 1


@pytest.mark.parametrize("seed", [1, 2])
def test_chaos(seed: int) -> None:
    add(1, 2).result  # noqa: B018
    errors: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def work(own: int) -> None:
        chance = random.Random(own)
        try:
            while time.monotonic() < end and not errors:
                chance.choice(WORK)()
        except BaseException as error:  # it is told in the test's own thread
            errors.append(error)

    killer = Killer(random.Random(seed))
    killer.start()
    threads = [threading.Thread(target=work, args=(10 * seed + number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    killer.stopped.set()
    killer.join()
    if errors:
        raise errors[0]
    assert all(killer.kills.values()), killer.kills
