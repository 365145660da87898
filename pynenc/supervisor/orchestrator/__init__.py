"""The orchestrator: the rules under which calls run. Pure: events in, effects out; no I/O, no clock.

It decides which worker runs which calls, what happens to the calls of a dead worker, and that each call gets exactly
one outcome.
"""

from __future__ import annotations

from pynenc.supervisor.orchestrator.rules import Orchestrator

__all__ = ["Orchestrator"]
