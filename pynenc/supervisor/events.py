"""What the orchestrator is told, and what it asks for. Per batch or per stretch of calls, never per call."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class TaskDeclared(NamedTuple):
    """A client uses a task; the rules that hold for its calls."""

    task: int
    max_worker_losses: int
    rerun_on_worker_loss: bool


class BatchArrived(NamedTuple):
    """A client submitted a batch. `source` names the queue in which it waits its turn."""

    batch: int
    task: int
    count: int  # type: ignore[assignment]
    source: int


class CallsSucceeded(NamedTuple):
    """A worker shipped the results of the calls `[first, stop)`, which took `seconds` together."""

    worker: int
    batch: int
    first: int
    stop: int
    seconds: float


class CallFailed(NamedTuple):
    """A worker shipped the exception of one call."""

    worker: int
    batch: int
    index: int  # type: ignore[assignment]
    seconds: float


class WorkerJoined(NamedTuple):
    """A worker can be leased calls."""

    worker: int


class WorkerLost(NamedTuple):
    """A worker's process ended. `position` is what its slot says it ran last."""

    worker: int
    position: int


class CutSettled(NamedTuple):
    """A cut is visible to its worker by now, and this is the position it had reached."""

    worker: int
    position: int


class CutReached(NamedTuple):
    """A worker came to its cut: it ran nothing from this position on and has dropped the rest."""

    worker: int
    position: int


class Looked(NamedTuple):
    """The time that was asked for with `LookAgain` has passed; the positions of all workers now."""

    positions: dict[int, int]


Event: TypeAlias = (
    TaskDeclared
    | BatchArrived
    | CallsSucceeded
    | CallFailed
    | WorkerJoined
    | WorkerLost
    | CutSettled
    | CutReached
    | Looked
)


class LeaseCalls(NamedTuple):
    """Hand the calls `[first, stop)` of a batch to a worker; the first of them has `position`."""

    worker: int
    position: int
    batch: int
    task: int
    first: int
    stop: int


class CutWorker(NamedTuple):
    """Have a worker leave out the positions `[start, stop)`, and tell when that is settled."""

    worker: int
    start: int
    stop: int


class UncutWorker(NamedTuple):
    """Take a worker's cut away: it was reached."""

    worker: int


class LookAgain(NamedTuple):
    """Tell the workers' positions after this many seconds."""

    seconds: float


class KeepOutcome(NamedTuple):
    """The outcome that was shipped for these calls is the first and only one: commit and deliver it."""

    batch: int
    first: int


class FailLost(NamedTuple):
    """Fail a call whose worker died: `losses` times, and too often, or `may_rerun` is false; `ran`: it was running then."""

    worker: int
    task: int
    batch: int
    index: int  # type: ignore[assignment]
    losses: int
    ran: bool
    may_rerun: bool


class BatchFinished(NamedTuple):
    """All calls of a batch have their outcome."""

    batch: int


Effect: TypeAlias = LeaseCalls | CutWorker | UncutWorker | LookAgain | KeepOutcome | FailLost | BatchFinished
