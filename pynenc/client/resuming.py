"""Calls that were left by earlier runs, and go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pynenc.exceptions import SupervisorLostError
from pynenc.state_backend.reader import TaskCounts

if TYPE_CHECKING:
    from pynenc.client.runner import ClusterRunner


class Resumed:
    """What `app.resume()` has taken up.

    Attributes:
        calls: How many calls had no outcome.
    """

    def __init__(self, runner: ClusterRunner) -> None:
        self._runner = runner
        self._ended = 0
        answer = self._ask()
        self._batches = [(int(first), int(stop)) for first, stop in answer["batches"]]
        self._before = {counts[0]: TaskCounts(*counts) for counts in answer["counts"]}
        self.calls = sum(one.calls - one.succeeded - one.failed for one in self._before.values())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended, also when their supervisor is killed meanwhile; whether they have.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            SupervisorLostError: The supervisor was ended on purpose.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._runner.wait_resumed(
                    self._ended, None if deadline is None else max(0.0, deadline - time.monotonic())
                )
            except SupervisorLostError:
                if not self._runner.is_supervisor_killed:
                    raise
                self._ask()  # The next one has taken up what this one had left.

    @property
    def left(self) -> int:
        """How many calls have no outcome yet."""
        return int(self._runner.ask("resumed")["left"])

    @property
    def counts(self) -> list[TaskCounts]:
        """How many calls of each task were taken up, and how many of these have ended how."""
        counts = []
        for task_id, calls, succeeded, failed in self._runner.stored().counts_of(self._batches):
            before = self._before[task_id]
            ended = before.succeeded + before.failed
            counts.append(TaskCounts(task_id, calls - ended, succeeded - before.succeeded, failed - before.failed))
        return counts

    def __len__(self) -> int:
        return self.calls

    def __repr__(self) -> str:
        return f"Resumed(calls={self.calls})"

    def _ask(self) -> dict[str, Any]:
        self._ended, answer = self._runner.ask_to_resume()
        return answer
