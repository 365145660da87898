"""The orchestrator as an app shows it: where calls and workers stand. The orchestrator itself is in the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pynenc.status import InvocationStatus

if TYPE_CHECKING:
    from pynenc.app import Pynenc


class Orchestrator:
    """The rules' state, seen from a client."""

    def __init__(self, app: Pynenc) -> None:
        self.app = app

    def get_invocation_status(self, invocation_id: str) -> InvocationStatus:
        """Where an invocation stands.

        Raises:
            InvocationNotFoundError: There is no such invocation.
        """
        return self.app.get_invocation(invocation_id).status

    def count_unfinished(self) -> int:
        """How many calls have no final status just now; none when no supervisor runs."""
        report = self.app.report()
        return int(report["unfinished"]) if report is not None else 0

    def workers(self) -> list[dict[str, Any]]:
        """Each worker: its number, pid, the task it runs, and how many calls it was leased."""
        report = self.app.report()
        return list(report["workers"]) if report is not None else []
