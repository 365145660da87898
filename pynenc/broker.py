"""The broker as an app shows it: how many calls wait for a worker. The broker itself is in the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynenc.app import Pynenc


class Broker:
    """The queue of ready calls, seen from a client."""

    def __init__(self, app: Pynenc) -> None:
        self.app = app

    def count_invocations(self) -> int:
        """How many calls wait for a worker just now; none when no supervisor runs."""
        report = self.app.report()
        return int(report["ready"]) if report is not None else 0
