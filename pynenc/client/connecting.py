"""How an app comes to a supervisor, and to another one when that is killed: found or started, greeted, told what is unfinished."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client import launch, process
from pynenc.client.batcher import Batcher, Packed
from pynenc.client.callbacks import Callbacks
from pynenc.client.connection import Connection
from pynenc.client.declarations import Declarations
from pynenc.client.handover import Handover
from pynenc.client.lost import LostRunner, anew
from pynenc.client.paths import Paths, paths_of
from pynenc.exceptions import RunnerError, SupervisorLostError, asked_in_handler
from pynenc.protocol.messages import BATCH_NUMBER_BITS, Batch, first_batch_of
from pynenc.protocol.run_file import Address
from pynenc.runner import RemoteRunner, Submission

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.app import Pynenc
    from pynenc.client.beginning import BegunSupervisor
    from pynenc.client.blobs import ClientBlobs
    from pynenc.lineage import Caller
    from pynenc.task import Task

GREETINGS = 20
"""How many supervisors may die under a client's hands before it gives up."""

MAX_RECOVERIES = 5
"""How many supervisors may die in a row without that any outcome comes."""


class InHand:
    """Held while calls are made whose large arguments may be written already, and are not sent yet.

    Args:
        lock: Held while the connection is let go of.
        when_none: Told when nothing of that kind is left.
    """

    def __init__(self, lock: threading.RLock, when_none: Callable[[], None]) -> None:
        self._lock = lock
        self._when_none = when_none
        self.count = 0

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1
            if not self.count:
                self._when_none()


class Connecting:
    """The connection of one app in this process to its supervisor: made when there is something to send, and kept up."""

    def __init__(self, app: Pynenc) -> None:
        self._app = weakref.ref(app)
        self._make_lock()
        self._connection: Connection | None = None
        self._is_workers_own = False
        self._is_connecting = False
        self._is_interrupted = False
        self._wait_interrupted = False
        self._takes_up = True
        self._blobs: ClientBlobs | None = None
        # These go on from one connection to the next: another thread may still look for what came over the last one.
        self._tokens = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._synced = 0
        self._left: weakref.WeakValueDictionary[int, Submission] = weakref.WeakValueDictionary()
        self._awaiting: set[Future[None]] = set()
        self._reset()

    def _reset(self) -> None:
        self._batch_numbers: Iterator[int] = iter(())
        self._declarations = Declarations()
        self._held: dict[int, Submission] = {}
        self._handover = Handover()
        self._resuming: set[int] = set()
        self._recoveries = 0
        self._since_read = 0
        self._callbacks = Callbacks(self._wait_for_callbacks)

    def _make_lock(self) -> None:
        """The lock, and what holds it: made anew in a forked child, where another thread of the parent may have held it."""
        self._lock = threading.RLock()
        self._is_changing = False
        self.in_hand = InHand(self._lock, self._nothing_in_hand)
        self._batcher = Batcher(
            self._lock,
            lambda: self._is_changing,
            self._open_batch,
            self._send_batch,
            lambda: not self._held,
            self._caller,
            self._tell_of_loss,
        )

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
            connection.leave()

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
        connection = Connection(connected, address, self._take_in, context.worker_of is not None)
        self._handover.numbers.append(connection.client)
        context.databases[self._the_app().state_backend.path] = None
        self._number_batches(connection.client)
        self._connection = connection  # The last: another thread that sees it makes calls.
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
        self._batcher.forget()
        self._reset()

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
                self._tell_of_loss(error)

        self._handover.finish(connection, unknown, self._answers, may_rerun, lose)

    # What goes over it.

    def _nothing_in_hand(self) -> None:
        """Everything is sent whose large arguments are written."""
        raise NotImplementedError

    def _take_in(self, kind: int, body: bytes) -> None:
        """Take in a frame that has come."""
        raise NotImplementedError

    def _open_batch(self) -> Submission:
        """A batch that is about to be sent."""
        raise NotImplementedError

    def _send_batch(
        self, task: Task[Any, Any], submission: Submission, packed: Packed, group: int, caller: Caller | None
    ) -> None:
        """Send it."""
        raise NotImplementedError

    def _caller(self) -> Caller | None:
        """The call inside of which this is, if it is one of the same supervisor."""
        raise NotImplementedError

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
