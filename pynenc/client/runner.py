"""The local cluster as a runner: calls go to the supervisor in batches, outcomes come back as they are made."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client import launch
from pynenc.client.batcher import Batcher, Packed, constant_of, pack_items
from pynenc.client.callbacks import CallbackThread, call_back
from pynenc.client.connection import Connection, query_frame
from pynenc.exceptions import InvocationNotFoundError, RunnerError, SupervisorLostError
from pynenc.invocation.distributed import (
    DistributedInvocation,
    DistributedInvocationGroup,
    Part,
    ReusedInvocation,
    whole,
)
from pynenc.lineage import behind, unless_stuck
from pynenc.prepared import PreparedCall
from pynenc.protocol.extras import Dependency, Extras, dependencies_column
from pynenc.protocol.frames import frame
from pynenc.protocol.messages import (
    BATCH_NUMBER_BITS,
    MAX_BATCH_CALLS,
    NO_INVOCATION,
    Batch,
    Failure,
    Kind,
    Results,
    bytes_frame,
    first_batch_of,
    format_invocation_id,
    invocation_number,
    json_frame,
    json_from,
    number_frame,
    number_from,
    parse_invocation_id,
    split_number,
)
from pynenc.runner import Submission
from pynenc.serializer import Frozen, all_plain, stored_arguments
from pynenc.status import InvocationStatus

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.app import Pynenc
    from pynenc.arguments import Arguments
    from pynenc.lineage import Caller
    from pynenc.state_backend import StateBackend
    from pynenc.state_backend.reader import Attempts
    from pynenc.task import Task

READ_EVERY = 16
"""While batches only go out, look at what has come back after so many of them."""

GREETINGS = 20
"""How many supervisors may die under a client's hands before it gives up."""

EXIT_S = 10.0
"""How long a client that exits waits for its last calls to be acknowledged."""

_runners: weakref.WeakSet[ClusterRunner] = weakref.WeakSet()


class ClusterRunner:
    """Runs the calls of one app in the worker processes of its supervisor.

    It connects, and starts the supervisor, when the first call is made.
    """

    runs_calls = True

    def __init__(self, app: Pynenc) -> None:
        self._app = weakref.ref(app)
        self._lock = threading.RLock()
        self._callbacks_lock = threading.Lock()
        self._connection: Connection | None = None
        self._is_workers_own = False
        self._reset()
        _runners.add(self)

    def _reset(self) -> None:
        self._batch_numbers: Iterator[int] = iter(())
        self._last_batch = 0
        self._keys: dict[str, int] = {}
        self._task_keys: dict[Task[Any, Any], int] = {}
        self._held: dict[int, Submission] = {}
        self._tokens = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._synced = 0
        self._since_read = 0
        self._ready: list[Callable[[], object]] = []
        self._callbacks: CallbackThread | None = None
        self._batcher = Batcher(self._open_batch, self._send_batch, lambda: not self._held, self._caller)

    # Submitting.

    def submit(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DistributedInvocation[Any, Any]:
        """Put one call into the open batch of its task, unless an invocation that is there already answers it."""
        plain = not kwargs and task.key_rules is None and all_plain(args)  # per call
        entry = args if plain else task.prepare(args, kwargs)
        if self._connection is None or self._connection.lost is not None:
            self._connect()
        if context.worker_of is not None:
            self._check_cycle(task, entry)
        if type(entry) is PreparedCall:
            self._batcher.flush()  # What it depends on has to be there before it.
            if task.key_rules is not None and task.key_rules.looks_up:
                from pynenc.client.lookup import Lookup

                submission, index, _, reused = Lookup(self, task).parts_of([entry])[0]
                if reused is not None:
                    return ReusedInvocation(task, submission, index, reused.diff_arg)
                return DistributedInvocation(task, submission, index)
        return DistributedInvocation(task, *self._batcher.add(task, entry))

    def submit_group(
        self, task: Task[Any, Any], items: Iterable[Any], common: dict[str, Any], name: str | None
    ) -> DistributedInvocationGroup[Any, Any]:
        """Send the calls in batches as the items come."""
        self._connect()
        self._batcher.flush()  # What they depend on has to be there before them.
        if not common:
            items = self.without_cycles(task, items)
        constant = constant_of(task)
        if common:
            constant = self._with_common_arguments(task, common, constant)
        if name is not None or (task.key_rules is not None and task.key_rules.looks_up):
            return DistributedInvocationGroup(task, self, self._looked_up(task, items, common, name, constant))
        parts: list[Part] = []
        group = 0
        for packed in pack_items(task, items, self._batch_calls(task), common, constant):
            parts.append(whole(self.submit_packed(task, packed, group)))
            group = group or parts[0].submission.number
        return DistributedInvocationGroup(task, self, parts)

    def _looked_up(
        self, task: Task[Any, Any], items: Iterable[Any], common: dict[str, Any], name: str | None, constant: Extras
    ) -> list[Part]:
        from pynenc.client.lookup import Lookup, NamedGroup, joined, with_digest

        if name is not None:
            named = (with_digest(task, *task.call_of(item, common), common) for item in items)
            return joined(NamedGroup(self, task, name, constant).parts_of(named))
        lookup = Lookup(self, task, constant, common)
        calls = (task.prepare(*task.call_of(item, common), common) for item in items)
        parts: list[Part] = []
        while chunk := [call for call in islice(calls, self._batch_calls(task)) if isinstance(call, PreparedCall)]:
            parts += lookup.parts_of(chunk)
        return joined(parts)

    def _with_common_arguments(self, task: Task[Any, Any], common: dict[str, Any], constant: Extras) -> Extras:
        """Send what all calls of a group share, and have the calls refer to it."""
        entry = task.freeze_call((), common)
        if isinstance(entry, PreparedCall):
            on = [Dependency(0, *one) for one in entry.dependencies]
            constant = constant._replace(dependencies=dependencies_column(on))
            entry = entry.entry
        assert isinstance(entry, Frozen)
        assert self._connection is not None
        token = next(self._tokens)
        self._connection.send(bytes_frame(Kind.COMMON, token, entry))
        self._connection.wait_until(lambda: token in self._answers)
        return constant._replace(common=int(self._answers.pop(token)["number"]))

    def stream(self, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None) -> Iterator[Any]:
        """Send calls as results are taken, so that at most `in_flight` are under way."""
        from pynenc.client.stream import stream

        return stream(self, task, items, ordered, in_flight)

    def submit_packed(self, task: Task[Any, Any], packed: Packed, group: int) -> Submission:
        """Send one batch of a group or a stream."""
        self._connect()
        submission = self._open_batch()
        submission.count = submission.unfinished = packed.count
        self._send_batch(task, submission, packed, group or submission.number, self._caller())
        return submission

    def offer(
        self, task: Task[Any, Any], packed: Packed, group: int
    ) -> tuple[Submission | None, list[tuple[int, int, int, bool]]]:
        """Send one batch, to be taken if no equal call waits already; else those of its calls for which one does.

        Each of them is its index here, the batch and the index there, and whether its arguments differ.
        """
        submission = self.submit_packed(task, packed, group)
        assert self._connection is not None
        number = submission.number
        self._connection.wait_until(lambda: number in self._answers)
        reused = self._answers.pop(number)["reused"]
        if not reused:
            return submission, []
        self._held.pop(number, None)
        return None, [tuple(one) for one in reused]

    def next_batch_number(self) -> int:
        """A number that no batch of anybody else will have."""
        number = next(self._batch_numbers, None)
        if number is None:
            raise RunnerError("this client has used up its batch numbers: app.close() and call again")
        return number

    # Waiting.

    def wait_until(
        self, done: Callable[[], bool], timeout: float | None = None, awaited: Sequence[Submission] = ()
    ) -> bool:
        """Send what is open, then read until something is so."""
        self._batcher.flush()
        if done():
            self._run_ready()
            return True
        if self._connection is None:
            self._connect()
        connection = self._connection
        assert connection is not None
        if context.nested_wait is None or not self._is_workers_own:
            reached = connection.wait_until(done, timeout)
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
        self._run_ready()
        return reached

    async def until(self, outcome: Future[None], submission: Submission) -> None:
        """Await the outcome of a call, which a callback tells."""
        if context.nested_await is None or not self._is_workers_own:
            await outcome
        else:
            await context.nested_await(outcome, [submission.number])

    def on_outcome(self, submission: Submission, index: int, callback: Callable[[], object]) -> None:
        """Call back when a call has its outcome, also when nobody waits for it."""
        with self._callbacks_lock:
            submission.callbacks = submission.callbacks or []
            submission.callbacks.append((index, callback))
            # Only now: whoever reads the outcome looks for callbacks after it, so one of both sees the other.
            if not submission.has_outcome(index):
                if self._callbacks is None:
                    self._callbacks = CallbackThread(self._wait_for_callbacks)
                self._callbacks.look_after(submission)
                return
            self._ready += submission.take_callbacks()
        self._run_ready()

    # Asking.

    def status_of(self, submission: Submission, index: int) -> InvocationStatus:
        """Ask the supervisor where a call stands."""
        try:
            self._batcher.flush()
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
        self._batcher.flush()
        live = [(one.number, first, stop) for one, first, stop in calls if one.unfinished]
        if live and self.connect_only():
            assert self._connection is not None
            self._connection.send(json_frame(Kind.CANCEL, calls=live, force=force))
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
            raise InvocationNotFoundError(submission.invocation_id(index), "its batch is not in the state backend")
        entry = stored_arguments(stored.packing, stored.arguments, index)
        extras = Extras.from_bytes(stored.extras, stored.count)
        if not extras.common:
            return task.args_from(entry)
        return task.args_from(entry, task.thaw(app.state_backend.common_arguments(extras.common)))

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
            raise InvocationNotFoundError(invocation_id, f"there is none in {app.state_backend.path}")
        return self.view(app.get_task(stored.task_id), batch, index, stored.count)

    def view(
        self, task: Task[Any, Any], batch: int, index: int, count: int, attempt: int | None = None
    ) -> DistributedInvocation[Any, Any]:
        """An invocation of a batch that another client submitted, or this one on an earlier day.

        Args:
            attempt: For the call that runs here, how many attempts there were before. Its batch is watched when somebody waits.
        """
        submission = self._held.get(batch) or Submission(self, batch, count)
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
        held = self._held.get(batch)
        if held is not None:
            return held
        stored = self.stored().batch(batch)
        if stored is None:
            raise InvocationNotFoundError(
                format_invocation_id(invocation_number(batch, 0)), "its batch is not in the state backend"
            )
        submission = Submission(self, batch, stored.count)
        self._bring_up(submission)
        return submission

    def group_of(
        self, task: Task[Any, Any], ranges: list[tuple[int, int, int]]
    ) -> DistributedInvocationGroup[Any, Any]:
        """A group of the calls `[first, stop)` of each batch."""
        self.sync()
        parts = [Part(self.submission_of(batch), first, stop) for batch, first, stop in ranges]
        return DistributedInvocationGroup(task, self, parts)

    def stored(self) -> StateBackend:
        """What is stored about the app's calls."""
        return self._the_app().state_backend

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
                        "of its calls had run, and they were not sent again"
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
        connection = self._connection
        assert connection is not None
        self._held[submission.number] = submission
        try:
            connection.send(number_frame(Kind.WATCH, submission.number))
            connection.wait_until(lambda: submission.number in self._answers)
        except SupervisorLostError:
            self._held.pop(submission.number, None)
            return False
        if self._answers.pop(submission.number)["live"]:
            return True
        self._held.pop(submission.number, None)
        return not submission.unfinished

    def sync(self) -> None:
        """Wait until everything that was submitted here is committed."""
        if self._connection is None:
            return
        self._batcher.flush()
        token = next(self._tokens)
        self._connection.send(number_frame(Kind.SYNC, token))
        self._connection.wait_until(lambda: self._synced >= token)

    # Beginning and ending.

    def close(self) -> None:
        """Have everything acknowledged that was submitted, and let go of the supervisor. A later call connects again."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            try:
                self._batcher.close()
                token = next(self._tokens)
                connection.send(number_frame(Kind.SYNC, token))
                connection.wait_until(lambda: self._synced >= token, EXIT_S)
                self._run_ready()
                connection.send(frame(Kind.GOODBYE))
            except RunnerError as error:
                if self._held:
                    self._the_app().logger.error("%s", error)
            finally:
                connection.close()
                self._connection = None
                if self._callbacks is not None:
                    self._callbacks.end()
                self._reset()

    def interrupt(self) -> None:
        """Have a supervisor that only this client uses end now; what has not run is kept in the state backend."""
        with self._lock:
            if self._connection is None:
                return
            try:
                self._connection.send(frame(Kind.GOODBYE, b"interrupted"))
            except RunnerError:
                pass
            self._connection.close()
            self._connection = None

    def after_fork_in_child(self) -> None:
        """A forked child connects for itself when it makes its first call."""
        self._lock = threading.RLock()
        self._callbacks_lock = threading.Lock()
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        self._reset()

    def start_staying(self, log: str | None) -> int:
        """Start a supervisor that stays when its clients have left; its pid."""
        app = self._the_app()
        launch.prepare_state_dir(app.conf.state_path)
        return launch.start_staying(launch.paths_of(app.conf.state_path, app.app_id), app.supervisor_settings(), log)

    def connect_only(self) -> bool:
        """Connect if a supervisor runs, without starting one; whether it is connected."""
        with self._lock:
            if self._connection is not None and self._connection.lost is None:
                return True
            app = self._the_app()
            if context.worker_of is not None and context.worker_of.app_id == app.app_id:
                self._connect()
                return True
            found = launch.find_running(launch.paths_of(app.conf.state_path, app.app_id))
            if found is None:
                return False
            try:
                self._greet(*found)
            except SupervisorLostError:
                return False  # It was just being killed.
            return True

    def _connect(self) -> None:
        with self._lock:
            if self._connection is not None:
                if self._connection.lost is None:
                    return
                self._forget_lost_connection()
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
            launch.prepare_state_dir(app.conf.state_path)
            paths = launch.paths_of(app.conf.state_path, app.app_id)
            for attempt in range(GREETINGS):
                try:
                    self._greet(*launch.find_or_start(paths, app.supervisor_settings()))
                    break
                except SupervisorLostError:
                    # One that is just being killed still takes connections for a moment.
                    if attempt == GREETINGS - 1:
                        raise
            _close_at_exit()

    def _greet(self, connected: Any, address: launch.Address) -> None:
        self._connection = Connection(connected, address, self._take_in, context.worker_of is not None)
        self._number_batches(self._connection.client)

    def _number_batches(self, client: int) -> None:
        first = first_batch_of(client)
        self._batch_numbers = iter(range(first, first + (1 << BATCH_NUMBER_BITS)))

    def _forget_lost_connection(self) -> None:
        assert self._connection is not None
        for submission in self._held.values():
            submission.runner = LostRunner(self, self._connection.lost)
        self._connection = None
        self._reset()

    def _the_app(self) -> Pynenc:
        app = self._app()
        assert app is not None
        return app

    # Going out.

    def _open_batch(self) -> Submission:
        number = self.next_batch_number()
        submission = self._held[number] = Submission(self, number, 0)
        return submission

    def _caller(self) -> Caller | None:
        """The call inside of which this is, if it is one of the same supervisor."""
        running = context.in_worker()
        return running.caller() if running is not None and self._is_workers_own else None

    def _check_cycle(self, task: Task[Any, Any], call: tuple[Any, ...] | Frozen | PreparedCall) -> None:
        caller = self._caller()
        if caller is not None and caller.is_above(task):
            caller.check(task, call)

    def without_cycles(self, task: Task[Any, Any], items: Iterable[Any]) -> Iterable[Any]:
        """Items of a `parallelize` or a stream, none of which is a call from inside of which this is.

        Raises:
            CycleDetectedError: One of them is; for what is no list, when it is taken.
        """
        self._connect()
        caller = self._caller()
        if caller is None or not caller.is_above(task):
            return items
        if isinstance(items, list):  # Looked at beforehand: a list is sent faster than an iterator.
            for item in items:
                caller.check_item(task, item)
            return items
        return caller.checked(task, items)

    def _send_batch(
        self, task: Task[Any, Any], submission: Submission, packed: Packed, group: int, caller: Caller | None
    ) -> None:
        connection = self._connection
        if connection is None:
            raise RunnerError("the connection was closed while calls were made")
        key = self._task_keys.get(task)
        if key is None:
            key = self._declare(task, connection)
        parent = NO_INVOCATION
        count, packing, payload, extras = packed
        if caller is not None:
            parent = caller.number
            submission.behind = behind(caller, extras, self._held)
            extras = extras._replace(lineage=caller.lineage)
        batch = Batch(submission.number, key, count, group, parent, time.time(), packing, payload, extras.to_bytes())
        connection.send(batch.to_frame())
        self._since_read += 1
        if self._since_read >= READ_EVERY:
            self._since_read = 0
            connection.read_nowait()

    def _declare(self, task: Task[Any, Any], connection: Connection) -> int:
        key = self._task_keys[task] = len(self._task_keys) + 1
        surroundings = {"sys_path": [path or os.getcwd() for path in sys.path], "cwd": os.getcwd()}
        options = task.conf.rules(task.is_async)
        connection.send(json_frame(Kind.TASK, key=key, task_id=task.task_id, options=options, context=surroundings))
        return key

    def _batch_calls(self, task: Task[Any, Any]) -> int:
        return min(task.conf.parallel_batch_size or MAX_BATCH_CALLS, MAX_BATCH_CALLS)

    # Coming in.

    def _take_in(self, kind: int, body: bytes) -> None:
        if kind == Kind.RESULTS:
            results = Results.from_body(body)
            submission = self._held.get(results.batch)
            if submission is not None:
                submission.add_results(results)
                self._outcome_came(submission)
        elif kind == Kind.FAILURE:
            failure = Failure.from_body(body)
            submission = self._held.get(failure.batch)
            if submission is not None:
                submission.add_failure(failure)
                self._outcome_came(submission)
        elif kind == Kind.SYNCED:
            self._synced = max(self._synced, number_from(body))
        elif kind == Kind.REPORT:
            fields = json_from(body)
            self._answers[fields.pop("token")] = fields

    def _outcome_came(self, submission: Submission) -> None:
        if not submission.unfinished:
            self._held.pop(submission.number, None)
        if submission.callbacks:
            with self._callbacks_lock:
                self._ready += submission.take_callbacks()

    def _wait_for_callbacks(self, waiting: list[Submission]) -> None:
        """Wait until callbacks can be called, and call them."""
        try:
            self.wait_until(lambda: bool(self._ready) or any(not one.callbacks for one in waiting), None, waiting)
        except RunnerError as error:
            for submission in waiting:
                submission.runner = LostRunner(self, error)
                with self._callbacks_lock:
                    self._ready += submission.take_callbacks(everything=True)
            self._run_ready()

    def _run_ready(self) -> None:
        while self._ready:
            try:
                callback = self._ready.pop(0)
            except IndexError:
                return  # Another thread took it.
            call_back(callback)

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """Ask the supervisor something that it knows by name; its answer."""
        self._connect()
        connection = self._connection
        assert connection is not None
        token = next(self._tokens)
        connection.send(query_frame(what, token=token, **fields))
        connection.wait_until(lambda: token in self._answers)
        answer: dict[str, Any] = self._answers.pop(token)
        return answer


class LostRunner:
    """Stands in for the runner of calls that nobody runs any more: whoever waits is told."""

    runs_calls = False

    def __init__(self, runner: ClusterRunner, error: RunnerError | None) -> None:
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
        raise self._error

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


def _close_at_exit() -> None:
    global _registered
    if not _registered:
        import atexit

        _registered = True
        atexit.register(_close_all)


_registered = False


def interrupt_all() -> None:
    """Have supervisors end now that nobody else uses; what has not run is kept in their state backends."""
    for runner in list(_runners):
        runner.interrupt()


def _close_all() -> None:
    if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
        interrupt_all()
    for runner in list(_runners):
        runner.close()


def _after_fork_in_child() -> None:
    for runner in list(_runners):
        runner.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
