"""The connections of workers: they start, what they send becomes events, they end. Runs in the supervisor."""

from __future__ import annotations

from pynenc.exceptions import ProtocolError
from pynenc.protocol.messages import REFERRING, Failure, Kind, Pause, Results, is_of_worker, number_from
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.events import (
    CallFailed,
    CallsSucceeded,
    CutReached,
    ThreadsWait,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
    WorkerUnfit,
)
from pynenc.supervisor.inbox import Inbox
from pynenc.supervisor.loop import Frames, Peer
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.pool import Pool, Worker

OWN = 0
"""No client has this number."""


class Workers:
    """Listens to workers.

    Args:
        pool: Knows whether they are ended on purpose.
        measuring: Knows why one may have died.
        blobs: Counts to which blobs results refer.
        inbox: Takes events.
    """

    def __init__(self, pool: Pool, measuring: Measuring, blobs: Blobs, inbox: Inbox) -> None:
        self._pool = pool
        self._measuring = measuring
        self._blobs = blobs
        self._inbox = inbox

    def started(self, worker: Worker) -> None:
        """A worker can be leased calls: it reads them when it is up."""
        worker.peer.on_frames = self.frames_came
        self._inbox.add(WorkerJoined(worker.number, worker.concurrent))

    def frames_came(self, peer: Peer, frames: Frames) -> None:
        """Take in what a worker has sent."""
        worker: Worker = peer.role
        number = worker.number
        for kind, body in frames:
            if kind == Kind.RESULTS:
                results = Results.from_body(body)
                if results.worker != number:
                    raise ProtocolError(f"results of worker {results.worker}")
                if results.packing & REFERRING:
                    results = self._blobs.results_came(results)
                succeeded = CallsSucceeded(number, results.batch, results.first, results.stop, results.took)
                self._inbox.add(succeeded, results)
            elif kind == Kind.FAILURE:
                failure = Failure.from_body(body)
                if failure.worker != number or failure.stop != failure.first + 1 or not is_of_worker(failure):
                    raise ProtocolError(f"a failure of worker {failure.worker}, ending {failure.ending}")
                from random import random  # Most supervisors end without a failure, and begin sooner without.

                took = failure.ended - failure.started
                failed = CallFailed(number, failure.batch, failure.first, took, failure.retry_s, random())
                self._inbox.add(failed, failure)
            elif kind == Kind.CUT:
                self._inbox.add(CutReached(number, number_from(body)))
            elif kind == Kind.UNFIT:
                self._inbox.add(WorkerUnfit(number, number_from(body)))
            elif kind == Kind.PAUSE:
                self._inbox.add(WorkerPaused(number, *Pause.from_body(body)))
            elif kind == Kind.RESUME:
                self._inbox.add(WorkerResumed(number, number_from(body)))
            elif kind == Kind.WAITS:
                worker.waits[OWN] = number_from(body)
                self._inbox.add(ThreadsWait(number, sum(worker.waits.values())))
            else:
                raise ProtocolError(f"a worker sent a frame of kind {kind}")

    def ended(self, worker: Worker, position: int) -> None:
        """A worker's process is gone, and all that it had sent is read."""
        self._measuring.note_death(worker)
        self._inbox.add(WorkerLost(worker.number, position, self._pool.is_ending))
        self._blobs.somebody_died()
