"""What the rules ask for goes to whoever does it. Runs in the supervisor."""

from __future__ import annotations

from typing import assert_never

from pynenc.protocol.messages import Failure, Results
from pynenc.supervisor.batches import Batches
from pynenc.supervisor.events import (
    AddWorker,
    AnswerOffer,
    BatchFinished,
    CallLater,
    CutWorker,
    Effect,
    EndCalls,
    FailLost,
    KeepAttempt,
    KeepOutcome,
    KeepTransition,
    KillWorker,
    LeaseCalls,
    LookAgain,
    MeasureWorkers,
    PauseWorker,
    ResumeCall,
    ResumeWorker,
    RetireWorker,
    StopCall,
    UncutWorker,
    WatchStops,
    WatchTimes,
)
from pynenc.supervisor.orders import Orders
from pynenc.supervisor.outcomes import Outcomes
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.timers import Timers

LAST_EFFECTS = (KeepOutcome, KeepAttempt, KeepTransition, EndCalls, FailLost, BatchFinished)
"""What is still done when the workers have been ended."""


class Effects:
    """Has done what the rules ask for.

    Args:
        pool: Starts and kills workers.
        orders: Tells them what to do.
        outcomes: Keeps how calls ended.
        batches: Lets batches go.
        timers: Tells the rules something later.
    """

    def __init__(self, pool: Pool, orders: Orders, outcomes: Outcomes, batches: Batches, timers: Timers) -> None:
        self._pool = pool
        self._orders = orders
        self._outcomes = outcomes
        self._batches = batches
        self._timers = timers

    def apply(self, effect: Effect, outcome: Results | Failure | None) -> None:
        """Have something done.

        Args:
            effect: What the rules ask for.
            outcome: What the event has brought to which they answer.
        """
        match effect:
            case LeaseCalls():
                self._orders.lease(effect)
            case KeepOutcome():
                assert outcome is not None
                self._outcomes.keep(outcome)
            case AnswerOffer():
                self._batches.answer_offer(effect)
            case BatchFinished():
                self._batches.finished(effect.batch)
            case FailLost():
                self._outcomes.keep_lost(effect)
            case EndCalls():
                self._outcomes.keep_ended(effect)
            case KeepAttempt():
                assert isinstance(outcome, Failure)
                self._outcomes.keep_attempt(outcome)
            case KeepTransition():
                self._outcomes.keep_transition(effect)
            case KillWorker():
                self._pool.kill(effect.worker)
            case WatchTimes():
                self._timers.check_times(effect.seconds)
            case MeasureWorkers():
                self._timers.measure(effect.seconds)
            case CallLater():
                self._timers.call_later(effect)
            case AddWorker():
                self._pool.add(effect.concurrent)
            case LookAgain():
                self._timers.look(effect.seconds)
            case WatchStops():
                self._timers.check_stops(effect.seconds)
            case CutWorker():
                self._orders.give(effect.worker, effect)
                self._timers.settle_cut(effect)
            case UncutWorker() | PauseWorker() | ResumeWorker() | ResumeCall() | StopCall() | RetireWorker():
                self._orders.give(effect.worker, effect)
            case _:
                assert_never(effect)
