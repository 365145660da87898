"""Starts the clients of a chaos run, kills and stops whatever lives, and has the books checked."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pynenc.client.paths import paths_of
from pynenc.conf.config_pynenc import ConfigPynenc
from pynenc.exceptions import RunnerError
from tests.chaos import workload
from tests.chaos.audit import Audit, Kill

PROJECT = Path(__file__).resolve().parents[2]
PAUSE_S = (0.02, 0.4)
"""Between two acts lie so many seconds at random."""

STOP_S = (0.05, 0.8)
END_S = 150.0
"""How long clients may take for their last round, and the supervisor for its last call."""

ENOUGH = 3
"""A run goes on until there were so many kills and rounds."""

ACTS = {
    "kill worker": 40,
    "kill supervisor": 14,
    "kill fork server": 6,
    "kill client": 14,
    "kill everything": 3,
    "stop worker": 9,
    "stop supervisor": 7,
    "stop client": 7,
}


class Summary(NamedTuple):
    """What a run came to."""

    seed: int
    seconds: float
    acts: Counter[str]
    counts: Counter[str]
    problems: list[str]

    @property
    def kills(self) -> int:
        """How many processes were killed on purpose; those that die with another one not counted."""
        return sum(count for act, count in self.acts.items() if act.startswith("kill"))


class Client:
    """One client process and its papers."""

    def __init__(self, directory: Path, number: int, seed: int) -> None:
        self.number = number
        self.accepted = directory / f"accepted-{number}"
        self.errors = directory / f"errors-{number}"
        self._out = directory / f"out-{number}"
        command = [sys.executable, "-m", "tests.chaos.client", str(seed), str(self.accepted)]
        with open(self.errors, "w") as errors, open(self._out, "w") as out:
            self.process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=out, stderr=errors)

    @property
    def rounds(self) -> int:
        """How many rounds it has done."""
        return len(self._out.read_text().split())

    def end(self) -> None:
        """Have it end after its round."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Chaos:
    """One run.

    Args:
        directory: For the state directory and the books. The environment names it already.
        seed: What happens when, as far as the machine lets it.
        clients: How many of them there are at once.
    """

    def __init__(self, directory: Path, seed: int, clients: int) -> None:
        self._directory = directory
        self._chance = random.Random(seed)
        self._seed = seed
        self._count = clients
        self._clients: list[Client] = []
        self._gone: list[Client] = []
        self._ledger = Path(os.environ[workload.LEDGER])
        self._ledger.touch()
        self._ledger_at_kill = -1
        self._kills: list[Kill] = []
        self._numbers = 0
        self._app = workload.app
        self._app.conf = ConfigPynenc({"app_id": "chaos"})
        for name in ("state_backend", "_cluster", "broker", "orchestrator"):
            self._app.__dict__.pop(name, None)
        self.acts: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, seconds: float) -> Summary:
        """Let it happen for so long, then have everything finished and look at the books."""
        began = time.monotonic()
        try:
            while not self.problems and not self._has_seen_enough(time.monotonic() - began, seconds):
                self._replace_clients()
                time.sleep(self._chance.uniform(*PAUSE_S))
                self._act(self._chance.choices(list(ACTS), list(ACTS.values()))[0])
            all_finished = self._finish()
        finally:
            for client in self._clients:
                client.process.kill()
                client.process.wait()
                client.end()
        counts = Counter(rounds=self._rounds)
        if not self.problems:
            audit = self._audit(all_finished)
            self.problems += audit.problems
            counts += audit.counts
        return Summary(self._seed, time.monotonic() - began, self.acts, counts, self.problems)

    @property
    def _rounds(self) -> int:
        return sum(client.rounds for client in [*self._clients, *self._gone])

    def _has_seen_enough(self, passed_s: float, seconds: float) -> bool:
        """Whether the time is over; on a machine that hardly gets on, also whether anything has happened."""
        if passed_s < seconds:
            return False
        kills = sum(count for act, count in self.acts.items() if act.startswith("kill"))
        return passed_s > seconds + END_S or (kills >= ENOUGH and self._rounds >= ENOUGH)

    def _replace_clients(self) -> None:
        for client in list(self._clients):
            if client.process.poll() is not None:
                self._problem(client, f"ended with {client.process.returncode}")
                self._clients.remove(client)
                self._gone.append(client)
        while len(self._clients) < self._count:
            self._numbers += 1
            self._clients.append(Client(self._directory, self._numbers, 1000 * self._seed + self._numbers))

    def _problem(self, client: Client, what: str) -> None:
        self.problems.append(f"client {client.number} {what}: {client.errors.read_text()[-3000:]}")

    # Acts.

    def _act(self, act: str) -> None:
        report = self._report()
        how, _, whom = act.partition(" ")
        if whom in ("client", "everything"):
            victims = [client.process.pid for client in self._clients] if whom == "everything" else []
            client = self._chance.choice(self._clients)
            victims = victims or [client.process.pid]
            if whom == "everything" and report is not None:
                victims.append(report["pid"])
        else:
            victims = self._cluster_process(whom, report)
        if not victims or (how == "kill" and whom in ("supervisor", "everything") and not self._has_moved()):
            return
        if how == "kill":
            self._kill(victims, whom)
        else:
            self._stop(victims[0], self._chance.uniform(*STOP_S))
        self.acts[act] += 1

    def _report(self) -> dict[str, Any] | None:
        try:
            return self._app.report()
        except RunnerError:
            return None

    def _has_moved(self) -> bool:
        """Whether anything ran since a supervisor was killed last: a cluster that never comes up proves nothing."""
        size = self._ledger.stat().st_size
        if size <= self._ledger_at_kill:
            return False
        self._ledger_at_kill = size
        return True

    def _cluster_process(self, whom: str, report: dict[str, Any] | None) -> list[int]:
        if report is None:
            return []
        workers = [worker["pid"] for worker in report["workers"]]
        if whom == "supervisor":
            return [report["pid"]]
        if whom == "fork server":
            return [report["fork_server"]]
        return [self._chance.choice(workers)] if workers else []

    def _kill(self, pids: list[int], whom: str) -> None:
        before = time.monotonic()
        self._note(f"kill {whom} {pids}")
        killed = [pid for pid in pids if _signal(pid, signal.SIGKILL)]
        after = time.monotonic()
        if whom != "client" and killed:
            self._kills.append(Kill(before, after, frozenset(killed) if whom == "worker" else None))
        for client in list(self._clients):
            if client.process.pid in pids:
                client.process.wait()
                client.end()
                self._clients.remove(client)
                self._gone.append(client)

    def _note(self, act: str) -> None:
        workload.append(str(self._directory / "acts"), f"{time.monotonic()} {act}")

    def _stop(self, pid: int, seconds: float) -> None:
        self._note(f"stop {pid} {seconds}")
        if _signal(pid, signal.SIGSTOP):
            time.sleep(seconds)
            _signal(pid, signal.SIGCONT)

    # The end.

    def _finish(self) -> bool:
        """Have clients do their last round, and all that others left be run; whether nothing may be unfinished then."""
        for client in self._clients:
            client.end()
        deadline = time.monotonic() + END_S
        for client in self._clients:
            try:
                code = client.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._problem(client, "did not come to an end")
            else:
                if code:
                    self._problem(client, f"ended with {code}")
        resume: Callable[[], Any] | None = getattr(self._app, "resume", None)
        if resume is not None and not self.problems and not resume().wait(END_S):
            self.problems.append(f"what was left did not come to an end: {self._report()}")
        while (report := self._report()) is not None and report["unfinished"] and not self.problems:
            if time.monotonic() > deadline:
                self.problems.append(f"calls are left that nobody runs: {report}")
            time.sleep(0.02)
        self._app.close()
        return resume is not None

    def _audit(self, all_finished: bool) -> Audit:
        database = paths_of(self._app.conf.state_path, self._app.app_id).database
        survivors = {client.process.pid for client in self._clients}
        accepted = {client.accepted: client not in self._clients for client in [*self._clients, *self._gone]}
        return Audit(database, self._ledger, accepted, self._kills, survivors, all_finished)


def _signal(pid: int, number: int) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def run(directory: Path, seconds: float, seed: int, clients: int = 3) -> Summary:
    """Run chaos in a directory of its own; the environment variables that say so are set already, but for the ledger's."""
    os.environ[workload.LEDGER] = str(directory / "ledger")
    return Chaos(directory, seed, clients).run(seconds)
