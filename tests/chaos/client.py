"""A client of the chaos run: round after round of calls, each checked, until it is told to end, or killed.

`python -m tests.chaos.client SEED ACCEPTED` ends after the round in which its standard input closes. Calls are written down as
accepted when the supervisor has acknowledged them, with what is to come out.
"""

from __future__ import annotations

import json
import random
import select
import sys
from collections.abc import Callable
from typing import Any

from pynenc import WorkerLostError
from tests.chaos import workload
from tests.chaos.workload import add, app, drowse, fibonacci, flaky, grow, nap, once, shrink, wrong

PATIENCE_S = 120.0
FIBONACCI = (0, 1, 1, 2, 3, 5, 8, 13, 21)


class Rounds:
    """What a client does.

    Args:
        chance: Decides.
        accepted: The file of what was accepted.
    """

    def __init__(self, chance: random.Random, accepted: str) -> None:
        self._chance = chance
        self._accepted = accepted
        self.all: list[Callable[[], None]] = [
            self.group,
            self.singles,
            self.naps,
            self.nested,
            self.results_as_arguments,
            self.stream,
            self.retries,
            self.failures,
            self.coroutines,
            self.large,
            self.once_only,
            self.common,
        ]

    def group(self) -> None:
        y, count = self._chance.randrange(100), self._chance.randrange(1, 2000)
        self._check(list(add.parallelize([(x, y) for x in range(count)])), [x + y for x in range(count)])

    def singles(self) -> None:
        count = self._chance.randrange(1, 100)
        self._check([add(x, 2) for x in range(count)], [x + 2 for x in range(count)])

    def naps(self) -> None:
        seconds, count = self._chance.choice([0.001, 0.005, 0.02]), self._chance.randrange(1, 60)
        self._check(list(nap.parallelize([(x, seconds) for x in range(count)])), list(range(count)))

    def nested(self) -> None:
        n = self._chance.randrange(3, 8)
        self._check([fibonacci(n)], [FIBONACCI[n]])

    def results_as_arguments(self) -> None:
        first, second = nap(1, 0.01), nap(2, 0.02)
        total = add(add(first, 10), add(second, 20))
        self._check([first, second, total], [1, 2, 33])

    def stream(self) -> None:
        assert list(add.stream(((x, 1) for x in range(200)), in_flight=8)) == list(range(1, 201))

    def retries(self) -> None:
        count = self._chance.randrange(1, 40)
        self._check([flaky(x) for x in range(count)], list(range(count)))

    def failures(self) -> None:
        count = self._chance.randrange(1, 40)
        self._check(list(wrong.parallelize([(x,) for x in range(count)])), [{"error": "KeyError"}] * count)

    def coroutines(self) -> None:
        count = self._chance.randrange(1, 60)
        self._check(list(drowse.parallelize([(x,) for x in range(count)])), list(range(count)))

    def large(self) -> None:
        size = self._chance.choice([1_000, 100_000, 600_000])
        self._check([grow(x, size) for x in range(4)], [f"{x}" * size for x in range(4)])
        self._check([shrink("x" * size) for _ in range(4)], [size] * 4)

    def once_only(self) -> None:
        count = self._chance.randrange(1, 60)
        self._check(list(once.parallelize([(x,) for x in range(count)])), [{"once": x} for x in range(count)])

    def common(self) -> None:
        group = add.parallelize([{"x": x} for x in range(300)], common_args={"y": 7})
        self._check(list(group), [x + 7 for x in range(300)])

    def _check(self, invocations: list[Any], expected: list[Any]) -> None:
        """Write down what was accepted, then see that it comes out."""
        app._cluster.sync()
        # What must not run twice is not sent again when its supervisor dies before it has acknowledged it.
        pairs = [
            (one, what)
            for one, what in zip(invocations, expected, strict=True)
            if not (isinstance(what, dict) and "once" in what) or one._submission.runner.runs_calls
        ]
        told = [f"{one.invocation_id} {json.dumps(what)}" for one, what in pairs]
        if told:
            workload.append(self._accepted, "\n".join(told))
        for invocation, what in pairs:
            if not isinstance(what, dict):
                found: Any = invocation.get(PATIENCE_S)
            else:
                assert invocation.wait(PATIENCE_S), f"{invocation} has no outcome"
                error = invocation.exception
                found = {"error": type(error).__name__} if "error" in what else what
                if "once" in what and not isinstance(error, WorkerLostError):
                    found = {"once": invocation.result}
            assert found == what, f"{invocation}: {found!r:.200} instead of {what!r:.200}"


def main() -> None:
    """Go on until the standard input closes."""
    chance = random.Random(int(sys.argv[1]))
    rounds, done = Rounds(chance, sys.argv[2]), 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        chance.choice(rounds.all)()
        done += 1
        print(done, flush=True)


if __name__ == "__main__":
    main()
