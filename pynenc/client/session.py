"""The connection of an app to its supervisor: begun, kept up, ended; batches go out, outcomes come in."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client import launch, process
from pynenc.client.batcher import Batcher, Packed
from pynenc.client.callbacks import Callbacks
from pynenc.client.connection import Connection, stop_calls_of
from pynenc.client.declarations import Declarations
from pynenc.client.handover import Handover
from pynenc.client.lost import LostRunner, anew, not_ours
from pynenc.client.paths import Paths, paths_of
from pynenc.exceptions import RunnerError, SupervisorLostError, asked_in_handler
from pynenc.lineage import behind
from pynenc.protocol.frames import frame
from pynenc.protocol.messages import (
    BATCH_NUMBER_BITS,
    MAX_BATCH,
    NO_INVOCATION,
    Batch,
    Failure,
    Kind,
    Results,
    first_batch_of,
    json_from,
    number_frame,
    number_from,
    numbers_from,
)
from pynenc.protocol.run_file import Address
from pynenc.runner import RemoteRunner, Submission

if TYPE_CHECKING:
    from pynenc.app import Pynenc
    from pynenc.client.beginning import BegunSupervisor
    from pynenc.client.blobs import ClientBlobs
    from pynenc.lineage import Caller
    from pynenc.task import Task

READ_EVERY = 16
"""While batches only go out, look at what has come back after so many of them."""

GREETINGS = 20
"""How many supervisors may die under a client's hands before it gives up."""

MAX_RECOVERIES = 5
"""How many supervisors may die in a row without that any outcome comes."""

EXIT_S = 10.0
"""How long a client that exits waits for its last calls to be acknowledged."""

INTERRUPT_S = 4.0
"""How long a client that is interrupted waits for its calls to be stopped. Mostly that takes some hundredths; on a machine that
has no time at all, to wait is better than to leave calls running."""

FLUSH_S = 0.2
"""How long it then tries to have calls accepted that have not left yet."""


class Session:
    """The connection of one app in this process to its supervisor, and what goes over it.

    It connects, and starts the supervisor, when there is something to send.
    """

    def __init__(self, app: Pynenc) -> None:
        self._app = weakref.ref(app)
        self._lock = threading.RLock()
        self._is_changing = False
        self._connection: Connection | None = None
        self._is_workers_own = False
        self._is_connecting = False
        self._is_interrupted = False
        self._wait_interrupted = False
        self._takes_up = True
        self._blobs: ClientBlobs | None = None
        self._reset()
        process.register(self)

    def _reset(self) -> None:
        self._batch_numbers: Iterator[int] = iter(())
        self._declarations = Declarations()
        self._held: dict[int, Submission] = {}
        self._handover = Handover()
        self._resuming: set[int] = set()
        self._recoveries = 0
        self._tokens = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._synced = 0
        self._since_read = 0
        self._callbacks = Callbacks(self._wait_for_callbacks)
        self._batcher = Batcher(
            self._open_batch, self._send_batch, lambda: not self._held, self._caller, self._tell_of_loss
        )

    # Beginning and ending.

    def close(self) -> None:
        """Have everything acknowledged that was submitted, and let go of the supervisor. A later call connects again."""
        # The helper thread may be looking for another supervisor, with calls in its hands that are in no database.
        if self._connected() is None:
            self._close_blobs(is_alone=True)
            return
        with self._alone():
            self._batcher.refuse_handler()
        has_unfinished = self._has_unfinished()
        try:
            self._batcher.close()
            if not self.sync(EXIT_S):
                self._the_app().logger.error(
                    "the supervisor has not acknowledged the last calls within %g s: they may be lost", EXIT_S
                )
            self._callbacks.call()
            if self._connection is not None:
                self._connection.send(frame(Kind.GOODBYE))
        except RunnerError as error:
            if has_unfinished:
                self._tell_of_loss(error)
        finally:
            # Only now: whoever sends a batch may have to wait for the lock, and closing waits for that batch.
            callbacks = self._callbacks
            with self._alone():
                callbacks.has_ended = True
                is_alone = self._connection is None or self._connection.lost is not None
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                self._reset()
                self._close_blobs(is_alone)
            callbacks.wait_for_end()  # Without the lock: the thread may be about to look for another supervisor.

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
        self._lock = threading.RLock()
        self._is_changing = False
        for submission in self._held.values():
            submission.runner = LostRunner(self._runner, not_ours(submission))
            submission.callbacks = None
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

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While a connection is made, replaced or let go of. A signal handler that interrupts that is refused."""
        with self._lock:
            if self._is_changing:
                raise asked_in_handler("connected to the supervisor")
            self._is_changing = True
            try:
                yield
            finally:
                self._is_changing = False

    def connect_only(self) -> bool:
        """Connect if a supervisor runs, without starting one; whether it is connected."""
        with self._alone():
            if self._is_connected():
                return True
            app = self._the_app()
            if context.own_supervisor(app.app_id) is not None:
                self._begin()
                return True
            paths = paths_of(app.conf.state_path, app.app_id)
            found = launch.find_running(paths)
            if found is None:
                return False
            if context.worker_of is None:
                process.watch()
            app.use_database(paths.database)
            try:
                self._greet(*found)
            except SupervisorLostError:
                return False  # It was just being killed.
            return True

    def _connect(self) -> None:
        connection = self._connection
        if connection is not None and connection.lost is None and not self._is_changing:
            return
        with self._alone():
            self._begin()

    def _begin(self) -> None:
        if self._is_connected():
            return
        begun = self._the_app().take_begun()
        try:
            self._begin_anew(begun)
        finally:
            if begun is not None:
                begun.abandon()

    def _begin_anew(self, begun: BegunSupervisor | None) -> None:
        if self._is_interrupted:
            raise self._why_interrupted()
        app = self._the_app()
        inside = context.own_supervisor(app.app_id)
        self._is_workers_own = inside is not None
        if inside is not None:
            address = Address(inside.address, inside.key)
            connected = launch.connect(address)
            if connected is None:
                raise SupervisorLostError("the supervisor of this worker is gone")
            self._greet(connected, address)
            return
        if context.worker_of is None:
            process.watch()
        launch.prepare_state_dir(app.conf.state_path)
        paths = paths_of(app.conf.state_path, app.app_id)
        app.use_database(paths.database)
        self._is_connecting = True
        try:
            self._find_or_start(paths, begun)
        except Exception:
            self._is_connecting = False
            raise
        self._is_connecting = False
        self._see_that_python_is_the_same()
        if self._is_interrupted:  # By another thread, which could not wait for this one.
            self._leave()
            raise self._why_interrupted()

    def _find_or_start(self, paths: Paths, begun: BegunSupervisor | None) -> None:
        for attempt in range(GREETINGS):
            try:
                settings = {**self._the_app().supervisor_settings(), "takes_up": self._takes_up}
                self._greet(*launch.find_or_start(paths, settings, begun))
                return
            except SupervisorLostError:
                # One that is just being killed still takes connections for a moment.
                begun = None
                if attempt == GREETINGS - 1:
                    raise

    def _see_that_python_is_the_same(self) -> None:
        """Functions that are pickled by value are bytecode, which another Python does not survive."""
        assert self._connection is not None
        mine, theirs = sys.implementation.cache_tag, self._connection.python
        if theirs not in (mine, None):
            pid = self._connection.supervisor_pid
            self._leave()
            raise RunnerError(
                f"the supervisor (pid {pid}) of this app and state directory runs {theirs}, this script {mine}: stop it first "
                "(pynenc runner stop), wait for the scripts that use it, or set another state_dir (PYNENC__STATE_DIR)"
            )

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RunnerError):
                connection.send(frame(Kind.GOODBYE))
            connection.close()

    def _why_interrupted(self) -> RunnerError:
        return RunnerError("the script was interrupted, and makes no more calls")

    def _is_connected(self) -> bool:
        """Whether there is a connection, after a lost one was replaced if it left something unfinished, and else forgotten."""
        connection = self._connection
        if connection is None:
            return False
        if connection.lost is None:
            return True
        if connection.is_closed or not self._has_unfinished():
            self._forget_lost_connection()
            return False
        self._replace(connection)
        return True

    def _greet(self, connected: Any, address: Address) -> None:
        self._connection = Connection(connected, address, self._take_in, context.worker_of is not None)
        self._handover.numbers.append(self._connection.client)
        context.databases[self._the_app().state_backend.path] = None
        self._number_batches(self._connection.client)
        if self._blobs is not None:
            self._blobs.hold_again()

    def _number_batches(self, client: int) -> None:
        first = first_batch_of(client)
        self._batch_numbers = iter(range(first, first + (1 << BATCH_NUMBER_BITS)))

    def _forget_lost_connection(self) -> None:
        assert self._connection is not None
        for submission in list(self._held.values()):
            submission.runner = LostRunner(self._runner, self._connection.lost)
        self._connection = None
        batcher = self._batcher
        batcher.forget()
        self._reset()
        self._batcher = batcher  # Its lock may be held, its thread may be the one that is here.

    def _take_up(self, lost: Connection, fresh: int | None = None) -> None:
        """Connect to another supervisor, and have it run what the dead one had not finished.

        Args:
            lost: The connection to the dead one.
            fresh: A batch that never reached it. When there is nothing else, it may also have been ended on purpose.

        Raises:
            RunnerError: There is none, or the supervisor did not die.
        """
        with self._alone():
            if self._connection is lost or self._connection is None:  # Else another thread has done it.
                self._replace(lost, fresh)

    def _replace(self, lost: Connection, fresh: int | None = None) -> None:
        while True:
            self._recoveries += 1
            is_hopeless = self._recoveries > MAX_RECOVERIES
            is_wanted = lost.is_closed and (fresh is None or self._has_unfinished(but=fresh))
            if self._connection is None or self._is_workers_own or is_wanted or is_hopeless:
                assert lost.lost is not None
                error = anew(lost.lost)
                if self._connection is not None:
                    self._forget_lost_connection()
                raise error
            try:
                self._connection = None
                self._begin()
                self._hand_over(lost.gave_up or "its supervisor was killed")
            except SupervisorLostError:
                lost = self._connection or lost
                self._connection = lost
                continue
            except BaseException:
                self._connection = lost
                self._forget_lost_connection()
                raise
            return

    def _has_unfinished(self, but: int | None = None) -> bool:
        return any(one.unfinished and one.number != but for one in list(self._held.values()))

    def _tell_of_loss(self, error: RunnerError) -> None:
        """Calls cannot be sent, and perhaps nobody waits for them."""
        app = self._app()
        if app is not None and not self._is_interrupted:
            app.logger.error("not all calls were acknowledged: %s", str(error))  # Not the frames that the error holds.

    def _hand_over(self, fate: str) -> None:
        """Tell a new supervisor what is unfinished: it knows what was committed, the rest is sent again."""
        connection = self._connection
        assert connection is not None
        for declaration in self._declarations.frames():
            connection.send(declaration)
        token = next(self._tokens)
        self._handover.begin(connection, token, list(self._held.values()))
        connection.wait_until(lambda: token in self._answers)
        unknown = self._answers.pop(token)["unknown"]
        tasks = self._declarations

        def may_rerun(batch: Batch) -> bool:
            return tasks.task_of(batch.task).conf.rerun_on_worker_loss

        def lose(number: int, why: str) -> None:
            if number in self._held:
                error = SupervisorLostError(f"batch {self._held[number].invocation_id(0)}: {fate}, {why}")
                self._held.pop(number).runner = LostRunner(self._runner, error)

        self._handover.finish(connection, unknown, self._answers, may_rerun, lose)

    def _wait_for_callbacks(self, waiting: list[Submission]) -> None:
        """Wait until callbacks can be called, and call them."""
        raise NotImplementedError

    @property
    def _runner(self) -> RemoteRunner:
        """This, as those see it who hold calls."""
        raise NotImplementedError

    def _the_app(self) -> Pynenc:
        app = self._app()
        assert app is not None
        return app

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
            self._batcher.flush()
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
