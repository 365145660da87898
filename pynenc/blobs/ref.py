"""Values that were put into shared memory explicitly, to be used by many calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import finalize

from pynenc import context
from pynenc.blobs.references import Reference
from pynenc.serializer import Frozen, loads

Value = TypeVar("Value")


class HeldReference(Reference):
    """A reference that keeps alive what holds its blob, until it has been sent."""

    hold: Hold


class Hold:
    """Keeps a value in shared memory as long as it lives: for a `BlobRef`, and for calls that were not sent yet."""


class BlobRef(Generic[Value]):
    """A value that lies in shared memory once, for many calls. Made by `app.put`.

    As an argument of a call, also inside of lists and dictionaries, it stands for the value, which the task gets read-only. It is
    freed when nothing uses it any more: `release` was called or the object is gone, and no unfinished call has it among its
    arguments. It is also a context manager that releases it at its end.
    """

    def __init__(
        self,
        frozen: Frozen,
        references: tuple[Reference, ...],
        release: Callable[[tuple[Reference, ...]], None] | None = None,
    ) -> None:
        self._frozen = frozen
        self._references = references
        self._hold: Hold | None = None
        if release is not None:
            self._hold = Hold()
            finalize(self._hold, release, references).atexit = False  # The client's end releases everything.

    @property
    def value(self) -> Value:
        """The value, read-only.

        Raises:
            BlobLostError: It was released.
        """
        return loads(self._frozen)  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let go of it: it is freed as soon as no unfinished call uses it. It cannot be used for further calls."""
        self._hold = None

    def __enter__(self) -> BlobRef[Value]:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        blobs = context.collector.blobs
        if blobs is None:
            raise TypeError(
                "a BlobRef can be an argument of a call, for which it stands for its value, and nothing else: "
                "return the value itself"
            )
        for reference in self._references:
            if self._hold is None:
                raise TypeError("this BlobRef was released: put the value again")
            held = HeldReference(*reference)
            held.hold = self._hold
            blobs.append(held)
        return value_of, (bytes(self._frozen),)

    def __repr__(self) -> str:
        return f"BlobRef({size:,} bytes)" if (size := sum(one.size for one in self._references)) else "BlobRef()"


def value_of(frozen: bytes) -> Any:
    """The value behind a `BlobRef` where a call runs; something that can be looked at where its arguments only are."""
    if context.collector.comparing:
        return frozen
    if context.collector.reading is not None:
        return BlobRef(Frozen(frozen), ())
    return loads(frozen)
