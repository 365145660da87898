"""What goes over the connection of an app to its supervisor: batches go out, outcomes come in; and how it is ended."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client import launch, process
from pynenc.client.batcher import Packed
from pynenc.client.connecting import Connecting
from pynenc.client.connection import LEFT, Connection, stop_calls_of
from pynenc.client.lost import LostRunner, not_ours
from pynenc.client.paths import paths_of
from pynenc.exceptions import RunnerError, SupervisorLostError
from pynenc.lineage import behind
from pynenc.protocol.messages import (
    MAX_BATCH,
    NO_INVOCATION,
    Batch,
    Failure,
    Kind,
    Results,
    json_from,
    number_frame,
    number_from,
    numbers_from,
)
from pynenc.runner import Submission

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.app import Pynenc
    from pynenc.client.blobs import ClientBlobs
    from pynenc.lineage import Caller
    from pynenc.task import Task

READ_EVERY = 16
"""While batches only go out, look at what has come back after so many of them."""

EXIT_S = 10.0
"""How long a client that exits waits for its last calls to be acknowledged."""

INTERRUPT_S = 4.0
"""How long a client that is interrupted waits for its calls to be stopped. Mostly that takes some hundredths; on a machine that
has no time at all, to wait is better than to leave calls running."""

FLUSH_S = 0.2
"""How long it then tries to have calls accepted that have not left yet."""


class Session(Connecting):
    """What goes over the connection of one app in this process to its supervisor, and how that ends."""

    def __init__(self, app: Pynenc) -> None:
        super().__init__(app)
        process.register(self)

    # Beginning and ending.

    def close(self) -> None:
        """Have everything acknowledged that was submitted, and let go of the supervisor. A later call connects again."""
        # The helper thread may be looking for another supervisor, with calls in its hands that are in no database.
        if self._connected() is None:
            with self._lock:
                if self._connection is None and not self.in_hand.count:
                    self._close_blobs(is_alone=True)
            return
        self._batcher.refuse_handler()
        is_acknowledged = self._see_that_all_is_acknowledged()
        callbacks = self._callbacks
        callbacks.call()
        with self._lock:  # Calls of other threads wait from here on, and then connect again.
            try:
                # Callbacks and other threads may have made further calls.
                if is_acknowledged and self._has_unfinished():
                    self._see_that_all_is_acknowledged()
                flusher = self._batcher.close()
            finally:
                self._let_go()
        # Without the lock: these threads may be about to look for another supervisor.
        callbacks.wait_for_end()
        if flusher is not None and flusher is not threading.current_thread():
            flusher.join()

    def _see_that_all_is_acknowledged(self) -> bool:
        """Have it acknowledged, or tell the user that it is not; whether it is."""
        has_unfinished = self._has_unfinished()
        try:
            if self.sync(EXIT_S):
                return True
            self._the_app().logger.error(
                "the supervisor has not acknowledged the last calls within %g s: they may be lost", EXIT_S
            )
        except RunnerError as error:
            if has_unfinished:
                self._tell_of_loss(error)
        return False

    def _let_go(self) -> None:
        """Close the connection. What is unfinished is delivered again when somebody waits for it."""
        with self._alone():
            self._callbacks.has_ended = True
            is_alone = self._connection is None or self._connection.lost is not None
            if self._connection is not None:
                self._connection.leave()
            self._connection = None
            self._left.update((number, one) for number, one in self._held.items() if one.unfinished)
            for outcome in list(self._awaiting):
                _tell_of_closing(outcome)
            self._reset()
            if not self.in_hand.count:
                self._close_blobs(is_alone)

    def _nothing_in_hand(self) -> None:
        if self._blobs is not None and self._connection is None:
            self._close_blobs(is_alone=False)  # The connection was closed meanwhile, and what was written is sent.

    @property
    def is_in_use(self) -> bool:
        """Whether it has calls without outcome, or was interrupted while it connected."""
        is_waiting = bool(self._resuming.difference(self._answers)) or self._has_unfinished()
        return self._is_connecting or (is_waiting and (self._connection is not None or self._is_changing))

    @property
    def was_left(self) -> bool:
        """Whether Ctrl-C ended a wait, and nothing was called or waited for since."""
        return self._wait_interrupted and self.is_in_use

    def interrupt(self, in_handler: bool) -> int:
        """Have the calls of this client stopped, for good; whoever waits for them in other threads is told.

        It is told over a connection of its own: this thread, or another one, may be in the middle of a message.

        Args:
            in_handler: Whether this thread may be in the middle of anything, so that nothing may be waited for.

        Returns:
            How many calls are kept in the state backend.
        """
        self._is_interrupted = True
        connection = self._connection
        if connection is None or connection.is_closed:
            return 0
        if not in_handler:
            connection.limit_sends(FLUSH_S)
            with contextlib.suppress(RunnerError):
                self._batcher.flush_within(FLUSH_S)
        connection.give_up("the script was interrupted; its calls are kept: pynenc resume runs them")
        try:
            return stop_calls_of(connection, INTERRUPT_S)
        finally:
            connection.shut_down()

    def after_fork_in_child(self) -> None:
        """A forked child connects for itself when it makes its first call; what its parent waits for is not its business."""
        self._make_lock()
        for submission in [*self._held.values(), *self._left.values()]:
            submission.runner = LostRunner(self._runner, not_ours(submission))
            submission.callbacks = None
        self._left.clear()
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        self._is_connecting = False
        if self._blobs is not None:
            self._blobs.after_fork_in_child()
        self._reset()

    def start_staying(self, log: str | None) -> int:
        """Start a supervisor that stays when its clients have left; its pid."""
        app = self._the_app()
        launch.prepare_state_dir(app.conf.state_path)
        return launch.start_staying(paths_of(app.conf.state_path, app.app_id), app.supervisor_settings(), log)

    # Large values.

    @property
    def blobs(self) -> ClientBlobs:
        """The blobs of this client."""
        if self._blobs is None:
            from pynenc.client.blobs import ClientBlobs

            made = ClientBlobs(self._the_app(), self._connect, self._send_now, self._is_sending)
            if self._blobs is None:  # Else a signal handler needed them meanwhile.
                self._blobs = made
        return self._blobs

    def _close_blobs(self, is_alone: bool) -> None:
        blobs, self._blobs = self._blobs, None
        if blobs is not None:
            blobs.close(is_alone)

    def _send_now(self, message: bytes) -> bool:
        connection = self._connection
        try:
            if connection is not None:
                connection.send(message)
            return connection is not None
        except SupervisorLostError:
            return False

    def _is_sending(self) -> bool:
        return self._connection is not None and self._connection.is_sending

    # Going out.

    def next_batch_number(self) -> int:
        """A number that no batch of anybody else will have."""
        number = next(self._batch_numbers, None)
        if number is None and self._connection is None:
            self._connect()  # Another thread has closed it since this one looked.
            number = next(self._batch_numbers, None)
        if number is None:
            raise RunnerError("this client has used up its batch numbers: app.close() and call again")
        return number

    def _open_batch(self) -> Submission:
        number = self.next_batch_number()
        submission = self._held[number] = Submission(self._runner, number, 0)
        return submission

    def _caller(self) -> Caller | None:
        """The call inside of which this is, if it is one of the same supervisor."""
        running = context.in_worker()
        return running.caller() if running is not None and self._is_workers_own else None

    def _send_batch(
        self, task: Task[Any, Any], submission: Submission, packed: Packed, group: int, caller: Caller | None
    ) -> None:
        connection = self._live_connection()
        self._wait_interrupted = False
        key, directory, declaration = self._declarations.key_of(task)
        parent = NO_INVOCATION
        count, packing, payload, extras = packed
        if caller is not None:
            parent = caller.number
            submission.behind = behind(caller, extras, self._held)
            extras = extras._replace(lineage=caller.lineage)
        if directory:
            extras = extras._replace(directory=directory)
        batch = Batch(submission.number, key, count, group, parent, time.time(), packing, payload, extras.to_bytes())
        if not self._is_workers_own:
            self._handover.keep(batch)
        message = batch.to_frame()
        if self._blobs is not None:
            self._blobs.send_releases()
        try:
            # Together: so nobody else's batch of this task can come before the declaration, and both are sent again.
            connection.send(declaration + message)
        except SupervisorLostError:
            # Another thread may have told the next supervisor of all tasks before this one was among them.
            self._send_again(batch, self._declarations.frame_of(key) + message, connection)
            return
        if declaration:
            self._declarations.sent(task, key)
        self._since_read += 1
        if self._since_read >= READ_EVERY:
            self._since_read = 0
            connection.read_nowait()

    def _connected(self) -> Connection | None:
        """The connection, after another thread has made it if one is at it; None when it was closed."""
        if self._connection is not None and not self._is_changing:
            return self._connection
        with self._alone():
            return self._connection

    def _live_connection(self) -> Connection:
        connection = self._connected()
        if connection is None:
            raise RunnerError("the connection was closed while calls were made or waited for")
        return connection

    def _send_again(self, batch: Batch, message: bytes, lost: Connection) -> None:
        """See to it that another supervisor has a batch that may not have reached one."""
        while True:
            self._take_up(lost, batch.id)
            if batch.id in self._handover.told:
                return
            lost = self._live_connection()
            try:
                lost.send(message)
            except SupervisorLostError:
                continue
            return

    # Coming in.

    def _take_in(self, kind: int, body: bytes) -> None:
        if kind == Kind.RESULTS:
            results = Results.from_body(body)
            self._handover.outcome_came(results.batch)
            submission = self._held.get(results.batch)
            if submission is not None:
                submission.add_results(results)
                self._outcome_came(submission)
        elif kind == Kind.FAILURE:
            failure = Failure.from_body(body)
            self._handover.outcome_came(failure.batch)
            submission = self._held.get(failure.batch)
            if submission is not None:
                submission.add_failure(failure)
                self._outcome_came(submission)
        elif kind == Kind.COMMITTED:
            self._handover.are_committed(numbers_from(body, MAX_BATCH))
        elif kind == Kind.SYNCED:
            number = number_from(body)
            # Nothing is called between look and change: so no signal handler comes in between.
            if number > self._synced:
                self._synced = number
        elif kind == Kind.NOTICE:
            self._the_app().logger.warning("%s", json_from(body).get("text"))
        elif kind == Kind.REPORT:
            fields = json_from(body)
            self._answers[fields.pop("token")] = fields

    def _outcome_came(self, submission: Submission) -> None:
        self._recoveries = 0
        if not submission.unfinished:
            self._held.pop(submission.number, None)
        if submission.callbacks:
            self._callbacks.outcome_came(submission)

    def sync(self, timeout: float | None = None) -> bool:
        """Wait until everything that was submitted here is committed, so many seconds at most; whether it is."""
        while True:
            self._batcher.settle()
            connection = self._connected()
            if connection is None:
                return True
            token = next(self._tokens)
            try:
                connection.send(number_frame(Kind.SYNC, token))
                return connection.wait_until(lambda: self._synced >= token, timeout)  # noqa: B023
            except SupervisorLostError:
                if not self._has_unfinished():
                    return True  # Then it was committed.
                self._take_up(connection)


def _tell_of_closing(outcome: Future[None]) -> None:
    """Have whoever awaits an outcome, perhaps in the event loop of another thread, raise that the connection was closed."""

    def tell() -> None:
        if not outcome.done():
            outcome.set_exception(SupervisorLostError(LEFT))

    with contextlib.suppress(RuntimeError):  # The loop is closed.
        outcome.get_loop().call_soon_threadsafe(tell)
