"""Compares what the ledger says, which each run of a call has written, with what is in the database."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pynenc.protocol.messages import BATCH_NUMBER_BITS, format_invocation_id, invocation_number
from pynenc.serializer import unpack
from pynenc.state_backend.reader import Reader

MOST_TOLD = 20
LAG_S = 1.0
"""A signal, above all that of a parent's death, takes a moment to arrive; so long a call may still have begun."""

MISSING = object()


class Kill(NamedTuple):
    """A process was killed between two points of monotonic time; `workers`: those that died of it, None for all."""

    before: float
    after: float
    workers: frozenset[int] | None


class Run(NamedTuple):
    """A line of the ledger."""

    began: float
    pid: int


class Audit:
    """What has become of every call.

    Args:
        database: The state backend's.
        ledger: What ran.
        accepted: Files of what clients were told is accepted, and what is to come out; whether the client was killed.
        kills: What was killed.
        survivors: The pids of the clients that were not killed.
        all_finished: Whether everything has to have an outcome, whoever has died.

    Attributes:
        problems: What is not as it should be; empty when all is well.
        counts: Figures.
    """

    def __init__(
        self,
        database: str,
        ledger: Path,
        accepted: dict[Path, bool],
        kills: list[Kill],
        survivors: set[int],
        all_finished: bool,
    ) -> None:
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self._runs = _read_ledger(ledger)
        self._kills = kills
        self._known: set[str] = set()
        self._outcomes = self._read_outcomes(database, survivors, all_finished)
        for path, was_killed in accepted.items():
            self._check_accepted(path, was_killed)
        self._check_successes_ran()
        self._check_reruns()

    def _complain(self, problem: str) -> None:
        self.counts["problems"] += 1
        if len(self.problems) < MOST_TOLD:
            self.problems.append(problem)

    def _read_outcomes(self, database: str, survivors: set[int], all_finished: bool) -> dict[str, Any]:
        """The outcome of each call: its result, or `{"error": name}`; each call has one, and not two."""
        outcomes: dict[str, Any] = {}
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        batches = connection.execute("SELECT id, count FROM batches").fetchall()
        pids = dict(connection.execute("SELECT id, pid FROM clients").fetchall())
        connection.close()
        reader = Reader(database)
        for batch, count in batches:
            results, failures = reader.outcomes_of(batch)
            found: dict[int, list[Any]] = defaultdict(list)
            for one in results:
                for index, value in zip(range(one.first, one.stop), unpack(one.packing, one.payload), strict=True):
                    found[index].append(value)
            for failure in failures:
                for index in range(failure.first, failure.stop):
                    found[index].append({"error": failure.type_name})
            must_finish = all_finished or pids.get(batch >> BATCH_NUMBER_BITS) in survivors
            for index in range(count):
                name = format_invocation_id(invocation_number(batch, index))
                self.counts["calls"] += 1
                self._known.add(name)
                if len(found[index]) > 1:
                    self._complain(f"{name} has {len(found[index])} final statuses")
                elif found[index]:
                    outcomes[name] = found[index][0]
                elif must_finish:
                    self._complain(f"{name} has no final status")
                else:
                    self.counts["left"] += 1
        reader.close()
        return outcomes

    def _check_accepted(self, path: Path, was_killed: bool) -> None:
        *lines, last = (path.read_text() if path.exists() else "").split("\n")
        if last and not was_killed:
            self._complain(f"{path} ends in the middle of a line, and nobody killed its writer")
        for line in lines:
            name, _, told = line.partition(" ")
            expected, found = json.loads(told), self._outcomes.get(name, MISSING)
            self.counts["accepted"] += 1
            if name not in self._known:
                self._complain(f"{name} was accepted and is not in the database")
            elif found is MISSING:
                pass  # Whether it may be unfinished was looked at above.
            elif isinstance(expected, dict) and "once" in expected:
                if found != expected["once"] and found != {"error": "WorkerLostError"}:
                    self._complain(f"{name} came out as {found!r:.200} instead of {expected!r:.200}")
            elif found != expected:
                self._complain(f"{name} came out as {found!r:.200} instead of {expected!r:.200}")

    def _check_successes_ran(self) -> None:
        ran = {name for name, _ in self._runs}
        for name, outcome in self._outcomes.items():
            if name not in ran and not (isinstance(outcome, dict) and outcome.get("error") != "KeyError"):
                self._complain(f"{name} has a result and never ran")

    def _check_reruns(self) -> None:
        """A call runs again only when the process in which it ran has been killed meanwhile."""
        for (name, attempt), runs in self._runs.items():
            runs.sort()
            self.counts["runs"] += len(runs)
            for earlier, later in pairwise(runs):
                self.counts["reruns"] += 1
                if not any(
                    earlier.began <= kill.after + LAG_S
                    and kill.before <= later.began
                    and (kill.workers is None or earlier.pid in kill.workers)
                    for kill in self._kills
                ):
                    self._complain(
                        f"{name} (attempt {attempt}) ran again although nothing had died: {earlier}, {later}"
                    )


def _read_ledger(path: Path) -> dict[tuple[str, int], list[Run]]:
    runs: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for line in path.read_text().splitlines():
        name, attempt, pid, began = line.split()
        runs[name, int(attempt)].append(Run(float(began), int(pid)))
    return runs
