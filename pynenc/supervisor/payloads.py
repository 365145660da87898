"""The argument bytes of unfinished batches: in memory up to a budget, beyond it in the state backend.

However many calls are queued, the supervisor's memory stays bounded; what does not fit is read back when its turn
comes.
"""

from __future__ import annotations

from pynenc.named_tuples import NamedTuple
from pynenc.protocol.messages import Batch, slice_payload
from pynenc.state_backend.store import Store


class Payload(NamedTuple):
    """The arguments of a batch; `payload` is None while they are only in the state backend."""

    packing: int
    payload: bytes | None


class Payloads:
    """The argument bytes of every unfinished batch.

    Args:
        store: Where they are read from when they are not in memory.
        memory_bytes: How many of them stay in memory.
    """

    def __init__(self, store: Store, memory_bytes: int) -> None:
        self._store = store
        self.memory_bytes = memory_bytes
        self._held_bytes = 0
        self._payloads: dict[int, Payload] = {}
        self._uncommitted: list[int] = []

    def add(self, batch: Batch) -> None:
        """Hold the arguments of a batch that will be committed at the end of this turn."""
        self._payloads[batch.id] = Payload(batch.packing, batch.payload)
        self._held_bytes += len(batch.payload)
        if self._held_bytes > self.memory_bytes:
            self._uncommitted.append(batch.id)

    def committed(self) -> None:
        """The turn was committed: what came in over the budget can be let go."""
        for batch in self._uncommitted:
            held = self._payloads.get(batch)
            if held is not None and held.payload is not None:
                self._held_bytes -= len(held.payload)
                self._payloads[batch] = held._replace(payload=None)
        self._uncommitted.clear()

    def slice(self, batch: int, first: int, stop: int) -> tuple[int, bytes]:
        """The packing, and the bytes that a lease of `[first, stop)` needs."""
        packing, payload = self._payloads[batch]
        if payload is None:
            payload = self._store.arguments(batch)
            self._held_bytes += len(payload)
            self._payloads[batch] = Payload(packing, payload)
        return packing, slice_payload(packing, payload, first, stop)

    def drop(self, batch: int) -> None:
        """Forget the arguments of a batch that is finished."""
        held = self._payloads.pop(batch, None)
        if held is not None and held.payload is not None:
            self._held_bytes -= len(held.payload)
