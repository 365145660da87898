"""Waiting for outcomes, and asking the supervisor and the state backend about calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client.connection import LEFT, Connection, query_frame
from pynenc.client.lost import LostRunner
from pynenc.client.session import Session
from pynenc.exceptions import InvocationNotFoundError, RunnerError, SupervisorLostError
from pynenc.execution import is_ctrl_c
from pynenc.invocation.distributed import (
    DistributedInvocation,
    DistributedInvocationGroup,
    Part,
)
from pynenc.lineage import unless_stuck
from pynenc.prepared import args_from, thaw
from pynenc.protocol.extras import Extras
from pynenc.protocol.messages import (
    Kind,
    format_invocation_id,
    invocation_number,
    json_frame,
    number_frame,
    parse_invocation_id,
    split_number,
)
from pynenc.runner import RemoteRunner, Submission
from pynenc.serializer import argument_bytes, stored_arguments
from pynenc.status import InvocationStatus

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.arguments import Arguments
    from pynenc.state_backend import StateBackend
    from pynenc.state_backend.reader import Attempts
    from pynenc.task import Task


SHOWN_BYTES = 1 << 16
"""Larger arguments are not unpickled to be shown in an error."""


class Asking(Session):
    """A session that waits and asks."""

    runs_calls = True

    @property
    def _runner(self) -> RemoteRunner:
        return self

    # Waiting.

    def wait_until(
        self, done: Callable[[], bool], timeout: float | None = None, awaited: Sequence[Submission] = ()
    ) -> bool:
        """Send what is open, then read until something is so."""
        self._batcher.flush()
        if self._left:
            self._bring_back(awaited)
            _see_that_they_run(awaited, done)
        if done():
            self._callbacks.call()
            return True
        if self._connection is None or self._is_changing:
            self._connect()
        connection = self._live_connection()
        if context.nested_wait is None or not self._is_workers_own:
            reached = self._wait_through(connection, done, timeout, awaited)
        else:
            unfinished = [submission for submission in awaited if submission.unfinished]
            for submission in unfinished:
                if submission.number not in self._held and not submission.callbacks:
                    self._watch(submission)
            numbers = [submission.number for submission in unfinished]
            caller = self._caller()
            if caller is not None:
                done = unless_stuck(done, unfinished, caller)
            reached = context.nested_wait(connection, done, numbers, timeout)
        self._callbacks.call()
        return reached

    def _wait_through(
        self,
        connection: Connection,
        done: Callable[[], bool],
        timeout: float | None,
        awaited: Sequence[Submission] = (),
    ) -> bool:
        """Wait, also while one supervisor dies and another takes its work up.

        Raises:
            RunnerError: There is none, or something of what is awaited was lost with the dead one.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._wait_interrupted = False
        while True:
            try:
                return connection.wait_until(done, timeout)
            except KeyboardInterrupt:
                self._wait_interrupted = True
                raise
            except SupervisorLostError:
                self._take_up(connection)
                if done():
                    return True
                _see_that_they_run(awaited, done)
                connection = self._live_connection()
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())

    async def until(self, outcome: Future[None], submission: Submission) -> None:
        """Await the outcome of a call, which a callback tells."""
        if context.nested_await is not None and self._is_workers_own:
            await context.nested_await(outcome, [submission.number])
            return
        self._awaiting.add(outcome)
        try:
            # Only now: whoever closes the connection tells those that stand here, so one of both sees the other.
            if submission.number in self._left:
                raise SupervisorLostError(LEFT)
            await outcome
        finally:
            self._awaiting.discard(outcome)

    def on_outcome(self, submission: Submission, index: int, callback: Callable[[], object]) -> None:
        """Call back when a call has its outcome, also when nobody waits for it."""
        if self._left:
            self._bring_back([submission])
            if not submission.runner.runs_calls:
                submission.runner.on_outcome(submission, index, callback)
                return
        self._callbacks.add(submission, index, callback)

    def _wait_for_callbacks(self, waiting: list[Submission]) -> None:
        """Wait until callbacks can be called, and call them."""
        callbacks = self._callbacks

        def is_something_to_do() -> bool:
            return callbacks.has_ended or callbacks.are_ready or any(not one.callbacks for one in waiting)

        try:
            self.wait_until(is_something_to_do, None, waiting)
        except RunnerError as error:
            if callbacks.has_ended:
                return
            for submission in [one for one in waiting if not one.runner.runs_calls] or waiting:
                if submission.runner.runs_calls:
                    submission.runner = LostRunner(self, error)
                if self._is_interrupted:
                    submission.callbacks = None  # There is nothing to tell them.
                callbacks.give_up(submission)
            callbacks.call()

    # Asking.

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """Ask the supervisor something that it knows by name; its answer."""
        token = next(self._tokens)
        return self._answer_to(query_frame(what, token=token, **fields), token)

    def _answer_to(self, message: bytes, token: int) -> dict[str, Any]:
        """Send a question, and wait for the answer of whichever supervisor gives it."""
        while True:
            self._connect()
            connection = self._connection
            assert connection is not None
            try:
                connection.send(message)
                connection.wait_until(lambda: token in self._answers)
            except SupervisorLostError:
                self._take_up(connection)
                continue
            answer: dict[str, Any] = self._answers.pop(token)
            return answer

    def status_of(self, submission: Submission, index: int) -> InvocationStatus:
        """Ask the supervisor where a call stands."""
        # What lies in an open batch is registered, as far as anybody knows: there is no need to send it first, which
        # a signal handler might not be allowed to.
        try:
            answer = self.ask("status", batch=submission.number, index=index)
        except SupervisorLostError:
            return InvocationStatus.REGISTERED  # Nobody runs it.
        if submission.has_outcome(index):  # It came before the answer did.
            return submission.final_status(index)
        status = str(answer["status"])
        return InvocationStatus.REGISTERED if status == "UNKNOWN" else InvocationStatus(status)

    def counts_of(self, submissions: list[Submission], unfinished: int) -> dict[InvocationStatus, int]:
        """Ask the supervisor where the calls without outcome stand."""
        answer = self.ask("counts", batches=[submission.number for submission in submissions])
        counts = {InvocationStatus(name): min(count, unfinished) for name, count in answer.items()}
        counts[InvocationStatus.REGISTERED] = max(0, unfinished - sum(counts.values()))
        return counts

    def cancel(self, calls: list[tuple[Submission, int, int]], force: bool) -> None:
        """Have the supervisor end calls: those `[first, stop)` of each submission."""
        self._batcher.settle()
        live = [(one.number, first, stop) for one, first, stop in calls if one.unfinished]
        if live and self.connect_only():
            self._live_connection().send(json_frame(Kind.CANCEL, calls=live, force=force))
            self.sync()

    def attempts_of(self, submission: Submission, index: int) -> Attempts:
        """Read from the state backend which attempts of a call there were."""
        self.sync()
        return self._the_app().state_backend.attempts_of(submission.number, index)

    def registered_at(self, submission: Submission) -> float:
        """Read from the state backend when a batch was made."""
        self.sync()
        stored = self._the_app().state_backend.batch(submission.number)
        return stored.registered if stored is not None else 0.0

    def retries_of(self, submission: Submission, index: int) -> int:
        """Read from the state backend how often a call was tried again."""
        self.sync()
        return self._the_app().state_backend.retries_of(submission.number, index)

    def arguments_of(self, task: Task[Any, Any], submission: Submission, index: int) -> Arguments:
        """Read the arguments back from the state backend."""
        app = self._the_app()
        stored = app.state_backend.batch(submission.number)
        if stored is None:
            self.sync()
            stored = app.state_backend.batch(submission.number)
        if stored is None:
            raise InvocationNotFoundError(submission.invocation_id(index), self._why_not_found())
        entry = stored_arguments(stored.packing, stored.arguments, index)
        extras = Extras.from_bytes(stored.extras, stored.count)
        if not extras.common:
            return args_from(task, entry)
        return args_from(task, entry, thaw(task, app.state_backend.common_arguments(extras.common)))

    def arguments_in_short(self, submission: Submission, index: int) -> str:
        """The arguments in few words, read back from the state backend; large ones are left where they are."""
        app = self._the_app()
        stored = app.state_backend.batch(submission.number)
        if stored is None:
            return ""  # It was purged.
        size = argument_bytes(stored.packing, stored.arguments, index)
        if common := Extras.from_bytes(stored.extras, stored.count).common:
            size += len(app.state_backend.common_arguments(common))
        if size > SHOWN_BYTES:
            return f"{size:,} bytes"
        try:
            return self.arguments_of(app.get_task(stored.task_id), submission, index).in_short()
        except BaseException as error:  # the user's own unpickling or repr, or a task that is not here
            if is_ctrl_c(error):
                raise
            return f"(cannot be shown: {type(error).__name__})"

    def parent_of(self, submission: Submission) -> str | None:
        """Read from the state backend which invocation made the calls."""
        self.sync()
        stored = self._the_app().state_backend.batch(submission.number)
        return format_invocation_id(stored.parent) if stored is not None and stored.parent else None

    def find(self, invocation_id: str) -> DistributedInvocation[Any, Any]:
        """The invocation with an id, whoever made it.

        Raises:
            InvocationNotFoundError: There is none in this app and state directory.
        """
        number = parse_invocation_id(invocation_id)
        if number is None:
            raise InvocationNotFoundError(
                invocation_id, "this is not an id of an invocation (three numbers joined by '-')"
            )
        self.sync()
        batch, index = split_number(number)
        app = self._the_app()
        stored = app.state_backend.batch(batch)
        if stored is None or index >= stored.count:
            raise InvocationNotFoundError(invocation_id, self._why_not_found())
        return self.view(app.get_task(stored.task_id), batch, index, stored.count)

    def view(
        self, task: Task[Any, Any], batch: int, index: int, count: int, attempt: int | None = None
    ) -> DistributedInvocation[Any, Any]:
        """An invocation of a batch that another client submitted, or this one on an earlier day.

        Args:
            attempt: For the call that runs here, how many attempts there were before. Its batch is watched when somebody waits.
        """
        with self._lock:
            submission = self._submitted(batch) or Submission(self, batch, count)
            if attempt is not None:
                submission.running = (index, attempt)
            else:
                self._bring_up(submission)
        return DistributedInvocation(task, submission, index)

    def submission_of(self, batch: int) -> Submission:
        """A batch that anybody submitted, as it stands now.

        Raises:
            InvocationNotFoundError: There is none in this app and state directory.
        """
        held = self._submitted(batch)
        if held is not None:
            return held
        stored = self.stored().batch(batch)
        if stored is None:
            raise InvocationNotFoundError(format_invocation_id(invocation_number(batch, 0)), self._why_not_found())
        with self._lock:
            submission = self._submitted(batch) or Submission(self, batch, stored.count)
            self._bring_up(submission)
        return submission

    def _submitted(self, batch: int) -> Submission | None:
        """A batch without all of its outcomes that is known here, as it is delivered once only."""
        return self._held.get(batch) or self._left.get(batch)

    def _bring_back(self, awaited: Iterable[Submission]) -> None:
        """Have delivered what was submitted over a connection that was closed since."""
        for submission in awaited:
            with self._lock:
                if self._left.pop(submission.number, None) is not None:
                    self._bring_up(submission)

    def group_of(
        self, task: Task[Any, Any], ranges: list[tuple[int, int, int]]
    ) -> DistributedInvocationGroup[Any, Any]:
        """A group of the calls `[first, stop)` of each batch."""
        self.sync()
        parts = [Part(self.submission_of(batch), first, stop) for batch, first, stop in ranges]
        return DistributedInvocationGroup(task, self, parts)

    def ask_to_purge(self) -> dict[str, Any]:
        """Have all invocations forgotten."""
        return self._ask_before_it_takes_up("purge")

    def ask_to_resume(self) -> tuple[int, dict[str, Any]]:
        """Have taken up what nobody runs; under which number its end is told, and which batches that are."""
        ended = next(self._tokens)
        self._resuming.add(ended)
        return ended, self._ask_before_it_takes_up("resume", ended=ended)

    def _ask_before_it_takes_up(self, what: str, **fields: Any) -> dict[str, Any]:
        """Ask about what is left: a supervisor that is started for that takes nothing up by itself, which might run before."""
        self._takes_up = False
        try:
            return self.ask(what, **fields)
        finally:
            self._takes_up = True

    def wait_resumed(self, ended: int, timeout: float | None) -> bool:
        """Wait for the end of what was resumed; whether it has come.

        Raises:
            SupervisorLostError: The supervisor is gone, and will not tell it.
        """
        try:
            reached = self._live_connection().wait_until(lambda: ended in self._answers, timeout)
        except SupervisorLostError:
            self._resuming.discard(ended)
            raise
        if reached:
            self._resuming.discard(ended)
        return reached

    @property
    def is_supervisor_killed(self) -> bool:
        """Whether the supervisor is gone and was not ended on purpose."""
        connection = self._connection
        return connection is not None and connection.lost is not None and not connection.is_closed

    def stored(self) -> StateBackend:
        """What is stored about the app's calls."""
        return self._the_app().state_backend

    def _why_not_found(self) -> str:
        return (
            f"there is none in {self.stored().path}; if there was one, it may have been purged (app.purge(), retention, "
            "max_state_size)"
        )

    def _bring_up(self, submission: Submission) -> None:
        """Take in what is known of a batch, and have what is still to come delivered."""
        batch = submission.number
        self._read_outcomes(submission)
        if submission.unfinished and batch not in self._held and not self._watch(submission):
            self._read_outcomes(submission)  # It may have ended because it was just done.
            if submission.unfinished:
                submission.runner = LostRunner(
                    self,
                    RunnerError(
                        f"nobody runs batch {submission.invocation_id(0)} any more: its supervisor ended before all "
                        "of its calls had run; pynenc resume runs them"
                    ),
                )

    def _read_outcomes(self, submission: Submission) -> None:
        """Take in the outcomes that are in the state backend."""
        results, failures = self._the_app().state_backend.outcomes_of(submission.number)
        for one in results:
            submission.add_results(one)
        for failure in failures:
            submission.add_failure(failure)

    def _watch(self, submission: Submission) -> bool:
        """Have the outcomes that are still to come delivered here too; False when nobody runs these calls."""
        if not self.connect_only():
            return False
        self._held[submission.number] = submission
        try:
            answer = self._answer_to(number_frame(Kind.WATCH, submission.number), submission.number)
        except SupervisorLostError:
            self._held.pop(submission.number, None)
            return False
        if answer["live"]:
            return True
        self._held.pop(submission.number, None)
        return not submission.unfinished


def _see_that_they_run(awaited: Iterable[Submission], done: Callable[[], bool]) -> None:
    """See that somebody runs what is waited for.

    Raises:
        RunnerError: Nobody runs some of it any more.
    """
    for submission in awaited:
        if submission.unfinished and not submission.runner.runs_calls:
            submission.runner.wait_until(done)
