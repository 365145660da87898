"""The blobs of a client: what it writes, what it holds, and what it lets go of."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.blobs.budget import memory_budget
from pynenc.blobs.directory import BlobDirectory
from pynenc.blobs.freezing import Freezer
from pynenc.blobs.ref import BlobRef
from pynenc.blobs.references import Reference, to_column
from pynenc.blobs.writing import Writer
from pynenc.conf.config_blobs import ConfigBlobs
from pynenc.exceptions import StateBackendError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.frames import frame
from pynenc.protocol.messages import Kind, numbers_frame
from pynenc.serializer import Frozen, Referring

if TYPE_CHECKING:
    from pynenc.app import Pynenc


MAX_SHARED = 16
"""So many large objects of a submission are known for further calls to refer to."""


class ClientBlobs:
    """The blobs of one client.

    Args:
        app: Its app.
        connect: See to it that a supervisor runs: what is written while none does is left behind by a process that is killed.
        send: Send a frame. False when there is nobody to take it, who is told of everything anew when there is.
        is_sending: Whether a thread is about to send something, perhaps this one.
    """

    def __init__(
        self,
        app: Pynenc,
        connect: Callable[[], None],
        send: Callable[[bytes], bool],
        is_sending: Callable[[], bool],
    ) -> None:
        conf = ConfigBlobs(app.config_values, app.config_filepath)
        self.threshold_bytes = conf.threshold_bytes
        self.budget_bytes = memory_budget(conf.memory_share, conf.memory_bytes)
        self._connect = connect
        self._send = send
        self._is_sending = is_sending
        self._state_backend = app.state_backend
        self._directory = BlobDirectory(app.state_backend.path)
        self._writer = Writer(self._directory, self.budget_bytes, context.own_supervisor(app.app_id) is not None)
        self._held: dict[Reference, None] = {}
        self._let_go: deque[tuple[Reference, ...]] = deque()
        self.freezer = ConnectingFreezer(self._writer, self.threshold_bytes, connect)

    def sharing(self, is_collection: bool) -> SharingFreezer:
        """For the calls of one submission: what is the same object in many of them is written once.

        Args:
            is_collection: Whether all calls are there already, so that nobody changes an object between two of them.
        """
        return SharingFreezer(self._writer, self.threshold_bytes, self._connect, self, is_collection)

    def put(self, value: Any) -> BlobRef[Any]:
        """Write a value, and hold it until the object that this returns is released or gone."""
        frozen = self.freezer.frozen(value)
        if not isinstance(frozen, Referring) and len(frozen) >= self.threshold_bytes:
            frozen = self.freezer.referring([memoryview(frozen)], (0, [0]))
        if not isinstance(frozen, Referring):
            return BlobRef(frozen, ())
        self.hold(frozen.references)
        return BlobRef(Frozen(frozen), frozen.references, self.release)

    def hold(self, references: Sequence[Reference]) -> None:
        """Have the supervisor keep blobs as long as this client lives."""
        self._held.update(dict.fromkeys(references))
        self._send(frame(Kind.HOLD, to_column(references)))

    def release(self, references: tuple[Reference, ...]) -> None:
        """Let go of blobs. This may be called at any time, also while this thread sends something: then it is told later."""
        self._let_go.append(references)
        if not self._is_sending():
            self.send_releases()

    def send_releases(self) -> None:
        """Tell the supervisor what was let go of."""
        while self._let_go:
            try:
                references = self._let_go.popleft()
            except IndexError:
                return  # Another thread took it.
            for reference in references:
                self._held.pop(reference, None)
            self._send(frame(Kind.RELEASE, to_column(references)))

    def drop_results(self, numbers: Sequence[int]) -> None:
        """Tell the supervisor that nobody needs these results any more: the numbers of the first of each stretch."""
        self._send(numbers_frame(Kind.DROP, numbers))

    def discard(self, references: Iterable[Reference]) -> None:
        """Free blobs of calls that were never sent."""
        self._writer.discard(one for one in references if type(one) is Reference and one not in self._held)

    def hold_again(self) -> None:
        """Tell another supervisor what is held here."""
        if self._held:
            self._send(frame(Kind.HOLD, to_column(list(self._held))))

    def close(self, is_alone: bool) -> None:
        """Let go of everything.

        Args:
            is_alone: Whether there is no supervisor that frees what was written here.
        """
        self._held.clear()
        self._let_go.clear()
        written = self._writer.written() if is_alone else []
        self._writer.close()
        if written:
            with contextlib.suppress(StateBackendError, OSError):  # Then the next supervisor frees it.
                needed = self._state_backend.blobs()
                self._directory.remove(name for name in written if name not in needed)

    def after_fork_in_child(self) -> None:
        """The parent's blobs are the parent's."""
        self._held.clear()
        self._let_go.clear()
        self._writer.after_fork_in_child()


class ConnectingFreezer(Freezer):
    """Sees to it that a supervisor runs before a blob is written."""

    def __init__(self, writer: Writer, threshold_bytes: int, connect: Callable[[], None]) -> None:
        super().__init__(writer, threshold_bytes)
        self._connect = connect

    def write(self, buffer: memoryview) -> Reference:
        self._connect()
        return self.writer.write(buffer)


class Shared(NamedTuple):
    """A blob that further calls of a submission may refer to.

    Attributes:
        owner: What its bytes were read from; kept, so that nothing else gets its address.
        turn: When it was last referred to.
    """

    reference: Reference
    owner: Any
    turn: int


class SharingFreezer(ConnectingFreezer):
    """Writes what is the same object in many calls once, and holds it until the calls are sent that may refer to it."""

    def __init__(
        self,
        writer: Writer,
        threshold_bytes: int,
        connect: Callable[[], None],
        blobs: ClientBlobs,
        is_collection: bool,
    ) -> None:
        super().__init__(writer, threshold_bytes, connect)
        self._blobs = blobs
        self._trusts = is_collection
        self._turn = 0
        self._shared: dict[tuple[int, int], Shared] = {}
        self._outdated: list[Shared] = []

    def write(self, buffer: memoryview) -> Reference:
        where = _address(buffer.obj)
        key = (id(buffer.obj) if where is None else where, buffer.nbytes)
        known = self._shared.pop(key, None)
        if known is not None:
            if self._trusts or (where is not None and _is_same(where, known.reference)):
                self._shared[key] = known._replace(turn=self._turn)  # The latest is the last.
                return known.reference
            self._outdated.append(known)
        reference = super().write(buffer)
        self._blobs.hold([reference])
        self._shared[key] = Shared(reference, buffer.obj, self._turn)
        return reference

    def sent(self) -> None:
        """Let go of what was not referred to for some time. What was frozen since the last time may not be sent yet."""
        self._turn += 1
        for key in list(islice(self._shared, max(0, len(self._shared) - MAX_SHARED))):
            self._outdated.append(self._shared.pop(key))
        self._release([known for known in self._outdated if known.turn < self._turn - 1])
        self._outdated = [known for known in self._outdated if known.turn >= self._turn - 1]

    def __enter__(self) -> SharingFreezer:
        return self

    def __exit__(self, *_: object) -> None:
        self._release([*self._outdated, *self._shared.values()])
        self._outdated.clear()
        self._shared.clear()

    def _release(self, known: Sequence[Shared]) -> None:
        if known:
            self._blobs.release(tuple(one.reference for one in known))


def _address(owner: Any) -> int | None:
    """Where the bytes of an array lie, if it tells."""
    described = getattr(owner, "__array_interface__", None)
    if isinstance(described, dict):
        return int(described["data"][0])
    address = getattr(owner, "address", None)
    return address if isinstance(address, int) else None


def _is_same(address: int, reference: Reference) -> bool:
    """Whether a blob holds the bytes at an address: they may have been changed since it was written."""
    import ctypes

    from pynenc.blobs.reading import address_of, view_of

    view = view_of(reference)
    size = ctypes.c_size_t(reference.size)
    return not ctypes.CDLL(None).memcmp(ctypes.c_void_p(address), ctypes.c_void_p(address_of(view)), size)
