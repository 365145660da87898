"""What the orchestrator is told, and what it asks for. Per batch or per stretch of calls, never per call."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from pynenc.named_tuples import NamedTuple
from pynenc.protocol.extras import NONE, Extras
from pynenc.status import InvocationStatus


class Ended(Enum):
    """Why the supervisor ends a call that did not end by itself."""

    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    KILLED = "killed"
    MEMORY = "memory"
    """Its worker took more than one may."""
    SHORT = "short"
    """The machine ran short of memory while it ran, again and again."""
    EXPIRED = "expired"
    CONTROLLED = "controlled"
    DEPENDENCY = "dependency"
    SHELVED = "shelved"
    """It has no outcome: it is kept, and run when somebody asks for it."""


class TaskOptions(NamedTuple):
    """The options of a task that the orchestrator acts on; durations in seconds, 0 for none."""

    max_worker_losses: int = 1
    rerun_on_worker_loss: bool = True
    max_retries: int = 0
    retry_delay_s: float = 0.0
    retry_backoff: float = 2.0
    retry_max_delay_s: float = 300.0
    retry_jitter: float = 0.0
    timeout_s: float = 0.0
    retry_on_timeout: bool = False
    retry_on_memory: bool = False
    expires_s: float = 0.0
    priority: int = 0
    max_running: int = 1
    reroute: bool = True
    concurrency: int = 0
    """How many calls run at once in one of the workers that are there for such tasks; 0: one after the other, in the others."""


class WorkerLimits(NamedTuple):
    """When workers are replaced or ended; 0 for never.

    Attributes:
        memory_bytes: What one may take for itself.
        check_s: How often they are looked at while they run calls.
        max_calls: How many calls one is given.
    """

    memory_bytes: int = 0
    check_s: float = 0.1
    max_calls: int = 0


NO_LIMITS = WorkerLimits()


class TaskDeclared(NamedTuple):
    """A client uses a task; the rules that hold for its calls."""

    task: int
    options: TaskOptions


class BatchArrived(NamedTuple):
    """A client submitted a batch.

    Attributes:
        source: Names the queue in which it waits its turn.
        extras: The keys and the dependencies of its calls.
        settled: What is known of those dependencies whose batches are finished: the calls `[first, stop)` of a batch all
            have their results (0), or this invocation of them has not.
    """

    batch: int
    task: int
    count: int  # type: ignore[assignment]
    source: int
    extras: Extras = NONE
    settled: dict[tuple[int, int, int], int] = {}  # noqa: RUF012


class BatchRecovered(NamedTuple):
    """A batch comes again that another supervisor had taken and not finished.

    Attributes:
        batch: The batch.
        succeeded: The calls `[first, stop)` that have their results.
        failed: Those that have ended without.
        retries: How many attempts after the first the others have had, by index.
    """

    batch: BatchArrived
    succeeded: list[tuple[int, int]]
    failed: list[tuple[int, int]]
    retries: dict[int, int]


class BatchOffered(NamedTuple):
    """A client submits a batch unless calls with the same registration keys wait already. All workers' positions."""

    batch: BatchArrived
    positions: dict[int, int]


class CallsSucceeded(NamedTuple):
    """A worker shipped the results of the calls `[first, stop)`, which took `seconds` together."""

    worker: int
    batch: int
    first: int
    stop: int
    seconds: float


class CallFailed(NamedTuple):
    """A worker shipped the exception of one call.

    `retry_s` is the delay that it asks for, `DEFAULT_DELAY` or `NOT_RETRIABLE`; `chance` a random number from 0 to 1.
    """

    worker: int
    batch: int
    index: int  # type: ignore[assignment]
    seconds: float
    retry_s: float
    chance: float = 0.0


class RetryDue(NamedTuple):
    """The time of a call's next attempt has come."""

    batch: int
    index: int  # type: ignore[assignment]


class CallsWithdrawn(NamedTuple):
    """The calls `[first, stop)` are to end if they have not begun; with `force` also if they run. All workers' positions."""

    batch: int
    first: int
    stop: int
    why: Ended
    force: bool
    positions: dict[int, int]


class BatchesShelved(NamedTuple):
    """Calls of these batches are to stop, and to be kept; those that run, too. All workers' positions."""

    batches: tuple[int, ...]
    positions: dict[int, int]


class TimesChecked(NamedTuple):
    """What each worker runs now and for how many seconds: its position and the time, by worker.

    `overdue` are the calls that should be over, of workers that run many at once: the position, by worker. `now` is
    in monotonic seconds.
    """

    running: dict[int, tuple[int, float]]
    overdue: dict[int, int]
    now: float


class WorkersMeasured(NamedTuple):
    """What workers take, and what there is.

    Attributes:
        used: Bytes that each worker takes for itself.
        running: The position of each worker and for how many seconds it has run its call.
        aged: The workers that are older than they may be.
        spare_bytes: How much more may be taken before the machine is short of memory; below 0, it is.
        now: Monotonic seconds.
    """

    used: dict[int, int]
    running: dict[int, tuple[int, float]]
    aged: frozenset[int]
    spare_bytes: int
    now: float


class WorkerJoined(NamedTuple):
    """A worker can be leased calls; many at once if it is `concurrent`."""

    worker: int
    concurrent: bool = False


class WorkerLost(NamedTuple):
    """A worker's process ended. `position` is what its slot says it ran last; `innocent`: it was ended on purpose."""

    worker: int
    position: int
    innocent: bool = False


class WorkerPaused(NamedTuple):
    """A worker's call waits for calls of the `awaited` batches; nothing behind its position was begun.

    `end` is the position behind the last call of its lease, `began` when the call began (monotonic seconds).
    """

    worker: int
    position: int
    end: int
    began: float
    awaited: tuple[int, ...]


class WorkerResumed(NamedTuple):
    """The call that waited goes on. The last call that the worker ran meanwhile had this position."""

    worker: int
    position: int


class ThreadsWait(NamedTuple):
    """So many threads of a worker's call, beside its main one and in processes that it forked, wait for other calls."""

    worker: int
    count: int  # type: ignore[assignment]


class CutSettled(NamedTuple):
    """A cut is visible to its worker by now, and this is the position it had reached."""

    worker: int
    position: int
    serial: int


class CutReached(NamedTuple):
    """A worker came to its cut: it ran nothing from this position on and has dropped the rest."""

    worker: int
    position: int


class WorkerUnfit(NamedTuple):
    """A worker has imported other modules than the calls from this position on mean: it runs none of them and drops the rest."""

    worker: int
    position: int


class Looked(NamedTuple):
    """The time that was asked for with `LookAgain` has passed; the positions of all workers now."""

    positions: dict[int, int]


class StopsChecked(NamedTuple):
    """The time that was asked for with `WatchStops` has passed: the positions of all workers, and which of them are stopped."""

    positions: dict[int, int]
    stopped: frozenset[int]


Event: TypeAlias = (
    TaskDeclared
    | BatchArrived
    | BatchOffered
    | BatchRecovered
    | CallsSucceeded
    | CallFailed
    | RetryDue
    | CallsWithdrawn
    | BatchesShelved
    | TimesChecked
    | WorkersMeasured
    | WorkerJoined
    | WorkerLost
    | WorkerPaused
    | WorkerResumed
    | ThreadsWait
    | CutSettled
    | CutReached
    | WorkerUnfit
    | Looked
    | StopsChecked
)


class LeaseCalls(NamedTuple):
    """Hand the calls `[first, stop)` of a batch to a worker; the first of them has `position`."""

    worker: int
    position: int
    batch: int
    task: int
    first: int
    stop: int
    attempt: int


class CutWorker(NamedTuple):
    """Have a worker leave out the positions `[start, stop)`, and tell when that is settled."""

    worker: int
    start: int
    stop: int
    serial: int


class UncutWorker(NamedTuple):
    """Take a worker's cut away: it was reached."""

    worker: int


class PauseWorker(NamedTuple):
    """Have these positions left out, or none, and tell the worker that what follows is what it waits for."""

    worker: int
    cut: tuple[int, int] | None


class ResumeWorker(NamedTuple):
    """Tell the worker that what follows is not for its pause any more; `uncut`: there is nothing that it must leave out."""

    worker: int
    uncut: bool


class AddWorker(NamedTuple):
    """Start one more worker: one waits, and there is other work; or one that is `concurrent`."""

    concurrent: bool = False


class RetireWorker(NamedTuple):
    """End a worker that has nothing to do and is one too many."""

    worker: int


class ResumeCall(NamedTuple):
    """Tell a concurrent worker that one of its calls, which waited for others, may go on."""

    worker: int
    position: int


class StopCall(NamedTuple):
    """Have a concurrent worker end one of its calls."""

    worker: int
    position: int


class LookAgain(NamedTuple):
    """Tell the workers' positions after this many seconds."""

    seconds: float


class WatchStops(NamedTuple):
    """Tell the workers' positions, and which of those that did not move are stopped, after this many seconds."""

    seconds: float


class KeepOutcome(NamedTuple):
    """The outcome that was shipped for these calls is the first and only one: commit and deliver it."""

    batch: int
    first: int


class FailLost(NamedTuple):
    """Fail a call whose worker died: `losses` times, and too often, or `may_rerun` is false.

    Attributes:
        ran: Whether it was running then.
        late_on_top: Whether a call that it waited for ran in the same worker, and took too long.
    """

    worker: int
    task: int
    batch: int
    index: int  # type: ignore[assignment]
    attempt: int
    losses: int
    ran: bool
    may_rerun: bool
    late_on_top: bool = False


class EndCalls(NamedTuple):
    """End the calls `[first, stop)` of a batch, which no worker holds; `again`: it is an attempt, and another follows."""

    batch: int
    task: int
    first: int
    stop: int
    attempt: int
    why: Ended
    worker: int = 0
    again: bool = False
    began: float = 0.0
    """When a call began that has waited ever since, in monotonic seconds; 0: the worker's slot tells it."""
    root: int = 0
    """The number of the invocation that failed, for those that depend on it."""


class KeepTransition(NamedTuple):
    """A step of the calls `[first, stop)` on the way to their outcome; `ran`: they had run on that worker until now."""

    batch: int
    first: int
    stop: int
    status: InvocationStatus
    worker: int
    ran: bool = False


class KeepAttempt(NamedTuple):
    """The exception that was shipped for this call ended one attempt, and another follows."""

    batch: int
    index: int  # type: ignore[assignment]


class KillWorker(NamedTuple):
    """End a worker because of the call that it runs."""

    worker: int


class WatchTimes(NamedTuple):
    """Tell what the workers run and for how long, after this many seconds."""

    seconds: float


class MeasureWorkers(NamedTuple):
    """Tell what the workers take, after this many seconds; instead of when that was asked for last."""

    seconds: float


class CallLater(NamedTuple):
    """Bring this event about after some seconds; a withdrawal with the positions of then."""

    seconds: float
    event: RetryDue | CallsWithdrawn


class Reused(NamedTuple):
    """A call of an offered batch is the same as this call, which waits already; `differs`: but for other arguments."""

    index: int  # type: ignore[assignment]
    batch: int
    there: int
    differs: bool


class AnswerOffer(NamedTuple):
    """Tell a client what became of the batch that it offered: it is taken when none of its calls is there already."""

    batch: int
    reused: list[Reused]


class BatchFinished(NamedTuple):
    """All calls of a batch have their outcome."""

    batch: int


Effect: TypeAlias = (
    LeaseCalls
    | CutWorker
    | UncutWorker
    | PauseWorker
    | ResumeWorker
    | ResumeCall
    | StopCall
    | AddWorker
    | RetireWorker
    | LookAgain
    | WatchStops
    | KeepOutcome
    | KeepAttempt
    | KeepTransition
    | FailLost
    | EndCalls
    | KillWorker
    | WatchTimes
    | MeasureWorkers
    | CallLater
    | AnswerOffer
    | BatchFinished
)
