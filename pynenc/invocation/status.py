"""The statuses of an invocation, where code written for the published API looks for them."""

from __future__ import annotations

from pynenc.status import InvocationStatus

__all__ = ["InvocationStatus"]
