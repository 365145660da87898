"""What a client has sent and no supervisor may have committed: kept until it is, and handed over when the supervisor is killed.

Runs in the caller's process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pynenc.client.connection import Connection
from pynenc.protocol.messages import BATCH_NUMBER_BITS, Batch, Kind, json_frame
from pynenc.runner import Submission


class Handover:
    """Keeps batches, and tells the next supervisor of them.

    Attributes:
        numbers: The client's numbers: each supervisor gives it another one.
        offered: Batches of which it is not known yet whether they were taken.
        told: The batches of which the latest supervisor was told when it took over.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.offered: set[int] = set()
        self.told: set[int] = set()
        self._uncommitted: dict[int, Batch] = {}
        self._committed: set[int] = set()

    # While all is well.

    def keep(self, batch: Batch) -> None:
        """A batch leaves, and is kept until it is known to be committed."""
        self._uncommitted[batch.id] = batch

    def outcome_came(self, number: int) -> None:
        """A batch is committed: an outcome says so."""
        self._uncommitted.pop(number, None)
        self._committed.discard(number)

    def are_committed(self, numbers: Iterable[int]) -> None:
        """The supervisor says that these batches are committed."""
        for number in numbers:
            if number in self._uncommitted:
                self._committed.add(number)  # First: a signal handler may come in between, and find it in one of them.
                self._uncommitted.pop(number, None)

    # When another supervisor takes over.

    def begin(self, connection: Connection, token: int, held: Iterable[Submission]) -> None:
        """Tell a new supervisor what is unfinished.

        Args:
            connection: To the new one, which knows this client's tasks already.
            token: Names its answer.
            held: All that has no outcome yet.
        """
        self.told = {one.number for one in held if one.unfinished and self._was_sent(one)}
        batches = sorted(self.told)
        connection.send(json_frame(Kind.ADOPT, token=token, clients=self.numbers, batches=batches))

    def finish(
        self,
        connection: Connection,
        unknown: list[int],
        answers: dict[int, Any],
        may_rerun: Callable[[Batch], bool],
        lose: Callable[[int, str], None],
    ) -> None:
        """Send again what the new supervisor has not found in the state backend.

        Args:
            connection: To the new one.
            unknown: What it has not found.
            answers: Takes those that the dead one did not give.
            may_rerun: Whether the calls of a batch may run again.
            lose: Told of each batch that cannot be sent again, and why.
        """
        for number in self.offered.intersection(self.told).difference(unknown):
            answers[number] = {"reused": []}  # It had been taken.
        for number in unknown:
            batch = self._uncommitted.get(number)
            if batch is None:
                lose(number, "and the state backend has lost it")
            elif may_rerun(batch):
                connection.send(batch.to_frame())
            else:
                lose(number, "perhaps while it ran, and option rerun_on_worker_loss is False")

    def _was_sent(self, submission: Submission) -> bool:
        """Whether a batch has left; one that is just leaving is sent to the new supervisor by whoever sends it."""
        number = submission.number
        return (
            number in self._uncommitted
            or number in self._committed
            or bool(submission.stretches or submission.failures)
            or number >> BATCH_NUMBER_BITS not in self.numbers  # Somebody else's, which is watched.
        )
