"""The connection of an app to its supervisor: begun, kept up, ended; batches go out, outcomes come in."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client import launch, process
from pynenc.client.batcher import Batcher, Packed
from pynenc.client.callbacks import CallbackThread, call_back
from pynenc.client.connection import Connection, query_frame, stop_calls_of
from pynenc.client.lost import LostRunner
from pynenc.exceptions import RunnerError, SupervisorLostError
from pynenc.lineage import behind
from pynenc.protocol.frames import frame
from pynenc.protocol.messages import (
    BATCH_NUMBER_BITS,
    NO_INVOCATION,
    Batch,
    Failure,
    Kind,
    Results,
    first_batch_of,
    json_frame,
    json_from,
    number_frame,
    number_from,
)
from pynenc.runner import RemoteRunner, Submission

if TYPE_CHECKING:
    from pynenc.app import Pynenc
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

INTERRUPT_S = 0.8
"""How long a client that is interrupted waits for its calls to be stopped."""

FLUSH_S = 0.2
"""How long it then tries to have calls accepted that have not left yet."""


class Session:
    """The connection of one app in this process to its supervisor, and what goes over it.

    It connects, and starts the supervisor, when there is something to send.
    """

    def __init__(self, app: Pynenc) -> None:
        self._app = weakref.ref(app)
        self._lock = threading.RLock()
        self._callbacks_lock = threading.Lock()
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
        self._task_keys: dict[Task[Any, Any], int] = {}
        self._held: dict[int, Submission] = {}
        self._uncommitted: dict[int, Batch] = {}
        self._committed: set[int] = set()
        self._handed_over: set[int] = set()
        self._numbers: list[int] = []
        self._offered: set[int] = set()
        self._resuming: set[int] = set()
        self._recoveries = 0
        self._tokens = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._synced = 0
        self._since_read = 0
        self._ready: list[Callable[[], object]] = []
        self._callbacks: CallbackThread | None = None
        if self._blobs is not None:
            self._blobs.close()
        self._batcher = Batcher(self._open_batch, self._send_batch, lambda: not self._held, self._caller)

    # Beginning and ending.

    def close(self) -> None:
        """Have everything acknowledged that was submitted, and let go of the supervisor. A later call connects again."""
        if self._connection is None:
            return
        try:
            self._batcher.close()
            if not self.sync(EXIT_S):
                self._the_app().logger.error(
                    "the supervisor has not acknowledged the last calls within %g s: they may be lost", EXIT_S
                )
            self._run_ready()
            if self._connection is not None:
                self._connection.send(frame(Kind.GOODBYE))
        except RunnerError as error:
            if self._held:
                self._the_app().logger.error("%s", error)
        finally:
            # Only now: whoever sends a batch may have to wait for the lock, and closing waits for that batch.
            with self._lock:
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                if self._callbacks is not None:
                    self._callbacks.end()
                self._reset()

    @property
    def is_in_use(self) -> bool:
        """Whether it has calls without outcome, or was interrupted while it connected."""
        is_waiting = bool(self._resuming.difference(self._answers)) or self._has_unfinished()
        return self._is_connecting or (self._connection is not None and is_waiting)

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
        self._callbacks_lock = threading.Lock()
        for submission in self._held.values():
            submission.runner = LostRunner(self._runner, _not_ours(submission))
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
        return launch.start_staying(launch.paths_of(app.conf.state_path, app.app_id), app.supervisor_settings(), log)

    def connect_only(self) -> bool:
        """Connect if a supervisor runs, without starting one; whether it is connected."""
        with self._lock:
            if self._is_connected():
                return True
            app = self._the_app()
            if context.worker_of is not None and context.worker_of.app_id == app.app_id:
                self._connect()
                return True
            found = launch.find_running(launch.paths_of(app.conf.state_path, app.app_id))
            if found is None:
                return False
            if context.worker_of is None:
                process.watch()
            try:
                self._greet(*found)
            except SupervisorLostError:
                return False  # It was just being killed.
            return True

    def _connect(self) -> None:
        with self._lock:
            if self._is_connected():
                return
            if self._is_interrupted:
                raise self._why_interrupted()
            app = self._the_app()
            inside = context.worker_of
            self._is_workers_own = inside is not None and inside.app_id == app.app_id
            if inside is not None and self._is_workers_own:
                address = launch.Address(inside.address, inside.key)
                connected = launch.connect(address)
                if connected is None:
                    raise SupervisorLostError("the supervisor of this worker is gone")
                self._greet(connected, address)
                return
            if inside is None:
                process.watch()
            launch.prepare_state_dir(app.conf.state_path)
            paths = launch.paths_of(app.conf.state_path, app.app_id)
            self._is_connecting = True
            try:
                self._find_or_start(paths)
            except Exception:
                self._is_connecting = False
                raise
            self._is_connecting = False
            if self._is_interrupted:  # By another thread, which could not wait for this one.
                self._leave()
                raise self._why_interrupted()

    def _find_or_start(self, paths: launch.Paths) -> None:
        for attempt in range(GREETINGS):
            try:
                settings = {**self._the_app().supervisor_settings(), "takes_up": self._takes_up}
                self._greet(*launch.find_or_start(paths, settings))
                return
            except SupervisorLostError:
                # One that is just being killed still takes connections for a moment.
                if attempt == GREETINGS - 1:
                    raise

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
        self._take_up(connection)
        return True

    def _greet(self, connected: Any, address: launch.Address) -> None:
        self._connection = Connection(connected, address, self._take_in, context.worker_of is not None)
        self._numbers.append(self._connection.client)
        context.databases[self._the_app().state_backend.path] = None
        self._number_batches(self._connection.client)

    def _number_batches(self, client: int) -> None:
        first = first_batch_of(client)
        self._batch_numbers = iter(range(first, first + (1 << BATCH_NUMBER_BITS)))

    def _forget_lost_connection(self) -> None:
        assert self._connection is not None
        for submission in self._held.values():
            submission.runner = LostRunner(self._runner, self._connection.lost)
        self._connection = None
        self._reset()

    def _take_up(self, lost: Connection) -> None:
        """Connect to another supervisor, and have it run what the dead one had not finished.

        Raises:
            RunnerError: There is none, or the supervisor did not die.
        """
        with self._lock:
            if self._connection is not lost and self._connection is not None:
                return  # Another thread has done it.
            while True:
                self._recoveries += 1
                is_hopeless = self._recoveries > MAX_RECOVERIES
                if self._connection is None or self._is_workers_own or lost.is_closed or is_hopeless:
                    assert lost.lost is not None
                    error = lost.lost
                    if self._connection is not None:
                        self._forget_lost_connection()
                    raise error
                try:
                    self._connection = None
                    self._connect()
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

    def _has_unfinished(self) -> bool:
        return any(one.unfinished for one in list(self._held.values()))

    def _hand_over(self, fate: str) -> None:
        """Tell a new supervisor what is unfinished: it knows what was committed, the rest is sent again."""
        connection = self._connection
        assert connection is not None
        for task, key in self._task_keys.items():
            self._tell_of(task, key, connection)
        if self._blobs is not None:
            self._blobs.hold_again()
        self._handed_over = {one.number for one in list(self._held.values()) if one.unfinished and self._was_sent(one)}
        token = next(self._tokens)
        batches = sorted(self._handed_over)
        connection.send(json_frame(Kind.ADOPT, token=token, clients=self._numbers, batches=batches))
        connection.wait_until(lambda: token in self._answers)
        tasks = {key: task for task, key in self._task_keys.items()}
        unknown = self._answers.pop(token)["unknown"]
        for number in self._offered.difference(unknown):
            self._answers[number] = {"reused": []}  # It had been taken.
        for number in unknown:
            batch = self._uncommitted.get(number)
            if batch is not None and tasks[batch.task].conf.rerun_on_worker_loss:
                connection.send(batch.to_frame())
            elif number in self._held:
                if batch is None:
                    why = f"{fate}, and the state backend has lost it"
                else:
                    why = f"{fate}, perhaps while it ran, and option rerun_on_worker_loss is False"
                error = SupervisorLostError(f"batch {self._held[number].invocation_id(0)}: {why}")
                self._held.pop(number).runner = LostRunner(self._runner, error)

    def _was_sent(self, submission: Submission) -> bool:
        """Whether a batch has left; one that is just leaving is sent to the new supervisor by whoever sends it."""
        number = submission.number
        return (
            number in self._uncommitted
            or number in self._committed
            or bool(submission.stretches or submission.failures)
            or number >> BATCH_NUMBER_BITS not in self._numbers  # Somebody else's, which is watched.
        )

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

            self._blobs = ClientBlobs(self._the_app(), self._connect, self._send_now, self._is_sending)
        return self._blobs

    def _send_now(self, message: bytes) -> bool:
        connection = self._connection
        try:
            if connection is not None:
                connection.send(message)
            return connection is not None
        except RunnerError:
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
        key = self._task_keys.get(task)
        is_new = key is None
        if key is None:
            key = self._task_keys[task] = len(self._task_keys) + 1
        parent = NO_INVOCATION
        count, packing, payload, extras = packed
        if caller is not None:
            parent = caller.number
            submission.behind = behind(caller, extras, self._held)
            extras = extras._replace(lineage=caller.lineage)
        batch = Batch(submission.number, key, count, group, parent, time.time(), packing, payload, extras.to_bytes())
        if not self._is_workers_own:
            self._uncommitted[batch.id] = batch
        message = batch.to_frame()
        if self._blobs is not None:
            self._blobs.send_releases()
        try:
            if is_new:
                self._tell_of(task, key, connection)
            connection.send(message)
        except SupervisorLostError:
            self._send_again(batch, message, connection)
            return
        self._since_read += 1
        if self._since_read >= READ_EVERY:
            self._since_read = 0
            connection.read_nowait()

    def _connected(self) -> Connection | None:
        """The connection, after another thread has made it if one is at it; None when it was closed."""
        if self._connection is not None:
            return self._connection
        with self._lock:
            return self._connection

    def _live_connection(self) -> Connection:
        connection = self._connected()
        if connection is None:
            raise RunnerError("the connection was closed while calls were made or waited for")
        return connection

    def _send_again(self, batch: Batch, message: bytes, lost: Connection) -> None:
        """See to it that another supervisor has a batch that may not have reached one."""
        while True:
            self._take_up(lost)
            if batch.id in self._handed_over:
                return
            lost = self._live_connection()
            try:
                lost.send(message)
            except SupervisorLostError:
                continue
            return

    def _tell_of(self, task: Task[Any, Any], key: int, connection: Connection) -> None:
        surroundings = {"sys_path": [path or os.getcwd() for path in sys.path], "cwd": os.getcwd()}
        options = task.conf.rules(task.is_async)
        connection.send(json_frame(Kind.TASK, key=key, task_id=task.task_id, options=options, context=surroundings))

    # Coming in.

    def _take_in(self, kind: int, body: bytes) -> None:
        if kind == Kind.RESULTS:
            results = Results.from_body(body)
            self._is_committed(results.batch)
            submission = self._held.get(results.batch)
            if submission is not None:
                submission.add_results(results)
                self._outcome_came(submission)
        elif kind == Kind.FAILURE:
            failure = Failure.from_body(body)
            self._is_committed(failure.batch)
            submission = self._held.get(failure.batch)
            if submission is not None:
                submission.add_failure(failure)
                self._outcome_came(submission)
        elif kind == Kind.COMMITTED:
            last = number_from(body)
            for number in list(self._uncommitted):
                if number > last:
                    break  # They are in the order in which they were sent; what came out of order is told of later.
                self._committed.add(number)
                self._uncommitted.pop(number, None)
        elif kind == Kind.SYNCED:
            self._synced = max(self._synced, number_from(body))
        elif kind == Kind.NOTICE:
            self._the_app().logger.warning("%s", json_from(body).get("text"))
        elif kind == Kind.REPORT:
            fields = json_from(body)
            self._answers[fields.pop("token")] = fields

    def _is_committed(self, number: int) -> None:
        """An outcome says so."""
        self._uncommitted.pop(number, None)
        self._committed.discard(number)

    def _outcome_came(self, submission: Submission) -> None:
        self._recoveries = 0
        if not submission.unfinished:
            self._held.pop(submission.number, None)
        if submission.callbacks:
            with self._callbacks_lock:
                self._ready += submission.take_callbacks()

    def _run_ready(self) -> None:
        while self._ready:
            try:
                callback = self._ready.pop(0)
            except IndexError:
                return  # Another thread took it.
            call_back(callback)

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


def _not_ours(submission: Submission) -> RunnerError:
    return RunnerError(
        f"batch {submission.invocation_id(0)} belongs to the process that forked this one, which gets its outcomes; "
        "here app.get_invocation(invocation_id) finds what it has sent"
    )
