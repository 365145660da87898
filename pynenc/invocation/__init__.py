"""Invocations: calls that are run once, and groups of them."""

from __future__ import annotations

from pynenc.invocation.base_invocation import BaseInvocation, BaseInvocationGroup, ReusedInvocation
from pynenc.invocation.distributed import (
    DistributedInvocation,
    DistributedInvocationGroup,
)
from pynenc.invocation.synchronous import SynchronousInvocation, SynchronousInvocationGroup
from pynenc.status import InvocationStatus

__all__ = [
    "BaseInvocation",
    "BaseInvocationGroup",
    "DistributedInvocation",
    "DistributedInvocationGroup",
    "InvocationStatus",
    "ReusedInvocation",
    "SynchronousInvocation",
    "SynchronousInvocationGroup",
]
