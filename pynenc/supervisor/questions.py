"""What clients ask by name, and what they are answered. Runs in the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynenc.exceptions import ProtocolError
from pynenc.protocol.fields import Fields
from pynenc.protocol.messages import MAX_BATCH, MAX_BATCH_CALLS, Kind, json_frame
from pynenc.supervisor.client import Client
from pynenc.supervisor.committing import Committing
from pynenc.supervisor.delivery import Delivery
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.report import Report
from pynenc.supervisor.stopping import Stopping
from pynenc.supervisor.taking_up import MAX_CLIENT, TakingUp


class Questions:
    """Answers them.

    Args:
        report: Says where calls stand.
        pool: Stays for its clients, or does not.
        stopping: Stops calls.
        taking_up: Has clients go on with what was left.
        commits: Knows why nothing is committed.
        delivery: Takes the answers.
        purge: Forgets all that the database has; why it did not.
    """

    def __init__(
        self,
        report: Report,
        pool: Pool,
        stopping: Stopping,
        taking_up: TakingUp,
        commits: Committing,
        delivery: Delivery,
        purge: Callable[[], str],
    ) -> None:
        self._report = report
        self._pool = pool
        self._stopping = stopping
        self._taking_up = taking_up
        self._commits = commits
        self._delivery = delivery
        self._purge = purge

    def ask(self, client: Client, fields: Fields) -> None:
        """A client asks something; some answers have to wait for what they tell."""
        answer: dict[str, Any] = {}
        what = fields.text("what")
        token = fields.integer("token", default=0)
        if what == "status":
            batch, index = fields.integer("batch", MAX_BATCH), fields.integer("index", MAX_BATCH_CALLS)
            answer = {"status": self._report.status_of(batch, index)}
        elif what == "counts":
            answer = self._report.counts_of(set(fields.integers("batches", MAX_BATCH)))
        elif what == "report":
            answer = {**self._report.all(), "waits_for_disk": self._commits.why}
            # It says why nothing is committed, so it does not wait for that.
            client.peer.send(json_frame(Kind.REPORT, token=token, **answer))
            return
        elif what == "name_group":
            named = (fields.text("task"), fields.text("name"), fields.integer("group", MAX_BATCH))
            self._taking_up.name_group(client, *named, token)
            return
        elif what == "group_made":
            self._taking_up.group_made(client, fields.integer("group", MAX_BATCH))
        elif what == "interrupt":
            self._interrupt(client, fields.integer("client", MAX_CLIENT), token)
            return
        elif what == "resume":
            self._taking_up.resume(client, token, fields.integer("ended"))
            return
        elif what == "resumed":
            answer = {"left": self._taking_up.left_of(client)}
        elif what == "stop":
            self._stopping.all_stopped = fields.flag("now", default=False)
            self._pool.persistent = False
        elif what == "purge":
            error = self._purge()
            answer = {"error": error} if error else {}
        else:
            raise ProtocolError(f"a client asked for {what!r:.100}")
        self._delivery.answer(client, json_frame(Kind.REPORT, token=token, **answer))

    def _interrupt(self, asking: Client, number: int, token: int) -> None:
        """A client, which tells this over another connection of its own, is interrupted."""
        kept = self._stopping.interrupt(number, asking)
        if kept is None:
            self._stopping.interrupter = (asking.peer, token)
        else:
            self._delivery.after_commit(asking.peer, json_frame(Kind.REPORT, token=token, kept=kept))
