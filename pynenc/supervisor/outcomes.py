"""How calls have ended, or not yet: put into the database, and on its way to whoever waits for it. Runs in the supervisor."""

from __future__ import annotations

import time

from pynenc.protocol.messages import Ending, Failure, Results, invocation_number
from pynenc.state_backend.store import Store
from pynenc.status import InvocationStatus
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.delivery import Delivery
from pynenc.supervisor.endings import Endings
from pynenc.supervisor.events import EndCalls, Ended, FailLost, KeepTransition
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.recovery import Recovery


class Outcomes:
    """Keeps outcomes.

    Args:
        store: Where they are kept.
        pool: Knows the workers that died.
        blobs: Counts to which blobs they refer.
        endings: Has the words for calls that did not end by themselves.
        failures: Those of this turn, by invocation number, for `endings`.
        recovery: Counts those of what was resumed.
        delivery: Takes them.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        blobs: Blobs,
        endings: Endings,
        failures: dict[int, Failure],
        recovery: Recovery,
        delivery: Delivery,
    ) -> None:
        self._store = store
        self._pool = pool
        self._blobs = blobs
        self._endings = endings
        self._failures = failures
        self._recovery = recovery
        self._delivery = delivery

    def keep(self, outcome: Results | Failure) -> None:
        """Calls have ended."""
        if isinstance(outcome, Results):
            self._store.add_results(outcome)
            self._blobs.results_kept(outcome)
        else:
            self._store.add_failure(outcome)
            for index in range(outcome.first, outcome.stop):
                self._failures[invocation_number(outcome.batch, index)] = outcome
        self._recovery.outcomes_kept(outcome.batch, outcome.stop - outcome.first)
        self._delivery.outcomes.append(outcome)

    def keep_attempt(self, failure: Failure) -> None:
        """A call has failed and is run again."""
        self._store.add_failure(failure._replace(ending=Ending.RETRY))

    def keep_lost(self, lost: FailLost) -> None:
        """A call has ended with its worker."""
        self.keep(self._endings.of_lost(lost))

    def keep_ended(self, ended: EndCalls) -> None:
        """Calls are ended, or run again, for a reason of the supervisor's own."""
        if ended.why is Ended.SHELVED:
            return
        failure = self._endings.of_ended(ended)
        if ended.again:
            self._store.add_failure(failure)
        else:
            self.keep(failure)

    def keep_transition(self, step: KeepTransition) -> None:
        """Calls have a status that nothing else tells of."""
        now = time.time()
        calls = (step.batch, step.first, step.stop)
        if step.ran and not self._pool.lost[step.worker].concurrent:
            began = now - self._pool.lost[step.worker].ran_s
            self._store.add_transition(*calls, InvocationStatus.RUNNING, step.worker, began)
        self._store.add_transition(*calls, step.status, step.worker, now)

    def committed(self) -> None:
        """All are in the database."""
        self._failures.clear()
