"""Who refers to which blob. Pure: it counts, and says what nobody refers to any more."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from pynenc.blobs.references import Reference
from pynenc.named_tuples import NamedTuple


class Kind(IntEnum):
    """What may refer to a blob. The numbers stand in the state backend."""

    ARGUMENTS = 0
    """An unfinished batch; by its number."""
    RESULTS = 1
    """Results in the state backend; by the number of their first invocation."""
    CLIENT = 2
    """A client that holds it; by its number."""


class Holder(NamedTuple):
    """One that refers to blobs."""

    kind: Kind
    number: int


class References:
    """The blobs that somebody refers to, with their sizes, the oldest first."""

    def __init__(self) -> None:
        self.sizes: dict[bytes, int] = {}
        self._holders: dict[bytes, set[Holder]] = {}
        self._held: dict[Holder, dict[bytes, None]] = {}

    def hold(self, holder: Holder, references: Iterable[Reference]) -> None:
        """Somebody refers to these blobs from now on."""
        held = self._held.setdefault(holder, {})
        for name, size in references:
            held[name] = None
            self.sizes[name] = size
            self._holders.setdefault(name, set()).add(holder)

    def release(self, holder: Holder, names: Iterable[bytes] | None = None) -> list[bytes]:
        """Somebody refers to these blobs no longer, or to none; those that nobody refers to now."""
        held = self._held.get(holder)
        if held is None:
            return []
        freed = []
        for name in list(held if names is None else names):
            if name not in held:
                continue
            del held[name]
            holders = self._holders[name]
            holders.discard(holder)
            if not holders:
                del self._holders[name], self.sizes[name]
                freed.append(name)
        if not held:
            del self._held[holder]
        return freed

    def release_all(self, kind: Kind) -> list[bytes]:
        """All of a kind refer to nothing any more; what nobody refers to now."""
        return [name for holder in [one for one in self._held if one.kind is kind] for name in self.release(holder)]

    def holds(self, holder: Holder) -> bool:
        """Whether it refers to anything."""
        return holder in self._held

    def are_kept(self, name: bytes) -> bool:
        """Whether a blob is to be there when the supervisor has ended: calls and results refer to it, not clients alone."""
        return any(holder.kind is not Kind.CLIENT for holder in self._holders.get(name, ()))

    def are_results(self, name: bytes) -> bool:
        """Whether nothing but the state backend refers to a blob."""
        return all(holder.kind is Kind.RESULTS for holder in self._holders.get(name, ()))

    def counts(self) -> dict[Kind, tuple[int, int]]:
        """How many blobs each kind refers to, and how many bytes they have."""
        counts = {}
        for kind in Kind:
            names = {name for holder, held in self._held.items() if holder.kind is kind for name in held}
            counts[kind] = (len(names), sum(self.sizes[name] for name in names))
        return counts

    def __contains__(self, name: object) -> bool:
        return name in self._holders

    def __len__(self) -> int:
        return len(self._holders)
