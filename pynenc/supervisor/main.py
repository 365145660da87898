"""The supervisor process begins here: the fork server first, since it takes as long to start as all the rest."""

from __future__ import annotations

from typing import Any

from pynenc.supervisor.fork_server import ForkServerProcess


def main(settings: dict[str, Any]) -> None:
    """Start the fork server, then serve. What serving needs is imported while the fork server starts."""
    fork_server = ForkServerProcess(settings)
    from pynenc.supervisor.service import serve

    serve(settings, fork_server)
