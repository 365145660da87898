"""In the place of the runner of calls that nobody runs any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pynenc.exceptions import RunnerError, SupervisorLostError
from pynenc.execution import call_back
from pynenc.runner import RemoteRunner, Submission
from pynenc.status import InvocationStatus

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.arguments import Arguments
    from pynenc.state_backend.reader import Attempts
    from pynenc.task import Task


class LostRunner:
    """Stands in for the runner of calls that nobody runs any more: whoever waits is told."""

    runs_calls = False

    def __init__(self, runner: RemoteRunner, error: RunnerError | None) -> None:
        self._runner = runner
        self._error = error or SupervisorLostError("the supervisor is gone")

    def wait_until(
        self, done: Callable[[], bool], timeout: float | None = None, awaited: Sequence[Submission] = ()
    ) -> bool:
        """Whether it is so already.

        Raises:
            RunnerError: It is not, and never will be.
        """
        if done():
            return True
        raise anew(self._error)

    async def until(self, outcome: Future[None], submission: Submission) -> None:
        """The callback was called already."""
        await outcome

    def status_of(self, submission: Submission, index: int) -> InvocationStatus:
        """Calls that nobody runs are where they began."""
        return InvocationStatus.REGISTERED

    def counts_of(self, submissions: list[Submission], unfinished: int) -> dict[InvocationStatus, int]:
        """Calls that nobody runs are where they began."""
        return {InvocationStatus.REGISTERED: unfinished}

    def arguments_of(self, task: Task[Any, Any], submission: Submission, index: int) -> Arguments:
        """Read the arguments back from the state backend."""
        return self._runner.arguments_of(task, submission, index)

    def arguments_in_short(self, submission: Submission, index: int) -> str:
        """Read the arguments back from the state backend."""
        return self._runner.arguments_in_short(submission, index)

    def parent_of(self, submission: Submission) -> str | None:
        """Read from the state backend which invocation made the calls."""
        return self._runner.parent_of(submission)

    def cancel(self, calls: list[tuple[Submission, int, int]], force: bool) -> None:
        """Nobody runs these calls."""

    def attempts_of(self, submission: Submission, index: int) -> Attempts:
        """Read from the state backend which attempts of a call there were."""
        return self._runner.attempts_of(submission, index)

    def registered_at(self, submission: Submission) -> float:
        """Read from the state backend when a batch was made."""
        return self._runner.registered_at(submission)

    def retries_of(self, submission: Submission, index: int) -> int:
        """Read from the state backend how often a call was tried again."""
        return self._runner.retries_of(submission, index)

    def on_outcome(self, submission: Submission, index: int, callback: Callable[[], object]) -> None:
        """Nothing is to come: call back at once."""
        call_back(callback)


def anew(error: RunnerError) -> RunnerError:
    """The same error, to be raised. One that is kept is not raised itself: it would keep all that is on the stack then."""
    return type(error)(*error.args)


def not_ours(submission: Submission) -> RunnerError:
    """Why a forked child gets no outcomes of what its parent had called."""
    return RunnerError(
        f"batch {submission.invocation_id(0)} belongs to the process that forked this one, which gets its outcomes; "
        "here app.get_invocation(invocation_id) finds what it has sent"
    )
