"""What every invocation and every group can do, however its calls are run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, overload

from pynenc.exceptions import InvocationError
from pynenc.status import InvocationStatus
from pynenc.types import Params, Result

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.app import Pynenc
    from pynenc.arguments import Arguments
    from pynenc.call import Call
    from pynenc.task import Task


class Outcome(NamedTuple, Generic[Result]):
    """How one call ended: with a result, or with an exception.

    >>> Outcome(3, None).ok
    True
    """

    result: Result | None
    exception: BaseException | None

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.exception is None


class StatusChange(NamedTuple):
    """One entry of an invocation's history.

    Attributes:
        status: The status that began.
        time: When; seconds since the epoch.
        worker: The number of the worker that ran the call then; 0 when none did.
        traceback: Of the attempt that ended so; empty when none failed.
    """

    status: InvocationStatus
    time: float
    worker: int
    traceback: str = ""


def by_id(app: Pynenc, invocation_id: str) -> BaseInvocation[Any, Any]:
    """An invocation that was pickled."""
    return app.get_invocation(invocation_id)


class BaseInvocation(ABC, Generic[Params, Result]):
    """One call that is run once: its identity, its status and its outcome."""

    __slots__ = ("__weakref__",)

    @property
    @abstractmethod
    def task(self) -> Task[Params, Result]:
        """The task that is called."""

    @property
    @abstractmethod
    def invocation_id(self) -> str:
        """Names this invocation in its app and state directory, for as long as that is kept."""

    @property
    @abstractmethod
    def arguments(self) -> Arguments:
        """The arguments, as they were when the call was made."""

    @property
    @abstractmethod
    def status(self) -> InvocationStatus:
        """Where the invocation stands."""

    @property
    @abstractmethod
    def num_retries(self) -> int:
        """How many further attempts there have been after the first."""

    @property
    @abstractmethod
    def parent_invocation(self) -> BaseInvocation[Any, Any] | None:
        """The invocation whose code made this call; None when no task did."""

    @property
    @abstractmethod
    def history(self) -> list[StatusChange]:
        """The statuses it has had until now, the oldest first; with the tracebacks of all attempts."""

    @abstractmethod
    def cancel(self, force: bool = False) -> None:
        """End the invocation if it has not begun; its result then raises `InvocationCancelledError`.

        Args:
            force: Whether to end it also when it runs: its worker is ended and replaced. Its status is KILLED then.

        One that has ended, or runs and is not forced, goes on as if nothing had been said. `wait` waits for what comes of it.
        """

    @abstractmethod
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the invocation has its final status.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether it has.
        """

    @property
    @abstractmethod
    def exception(self) -> BaseException | None:
        """The exception that the call ended with, or None when it succeeded. Waits for the end."""

    @abstractmethod
    def get(self, timeout: float | None = None) -> Result:
        """The result; waits for it.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            TimeoutError: It is not there in time; the call goes on.
            BaseException: What the task raised, with the worker's traceback as its cause.
        """

    @abstractmethod
    def add_done_callback(self, callback: Callable[[Self], object]) -> None:
        """Have `callback(invocation)` called once, when the invocation has its final status.

        It is called in some thread of this process, at once when the status is final already. What it raises is
        logged. When the script ends or closes the app before that, the call goes on, and nobody is left to call the callback.
        """

    @property
    def result(self) -> Result:
        """The result; waits for it, and raises what the task raised."""
        return self.get()

    @property
    def app(self) -> Pynenc:
        """The app of the task."""
        return self.task.app

    @property
    def call(self) -> Call[Params, Result]:
        """The task with its arguments."""
        from pynenc.call import Call

        return Call(self.task, self.arguments)

    @property
    def call_id(self) -> str:
        """The same for calls of the same task with equal arguments."""
        return self.call.call_id

    def get_final_result(self) -> Result:
        """The result, when it is there already.

        Raises:
            InvocationError: The status is not final.
        """
        status = self.status
        if not status.is_final:
            raise InvocationError(
                self.invocation_id, f"its status is {status}, so it has no result yet; .result waits for it"
            )
        return self.get()

    async def async_result(self) -> Result:
        """The result, awaited in the running event loop, which goes on meanwhile."""
        import asyncio

        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def tell(_: BaseInvocation[Params, Result]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish)

        self.add_done_callback(tell)
        await self._until(done)
        return self.get()

    async def _until(self, outcome: Future[None]) -> None:
        """Await what a callback tells."""
        await outcome

    def __await__(self) -> Generator[Any, None, Result]:
        return self.async_result().__await__()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseInvocation):
            return NotImplemented
        return self.invocation_id == other.invocation_id

    def __hash__(self) -> int:
        return hash(self.invocation_id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.invocation_id}, task={self.task.task_id})"


class ReusedInvocation(BaseInvocation[Params, Result]):
    """An invocation that was there already when a call was made, and answers it.

    Attributes:
        diff_arg: The arguments of the new call, when they differ from those of the invocation that waits with its key.
    """

    __slots__ = ()

    diff_arg: Arguments | None


class BaseInvocationGroup(ABC, Generic[Params, Result]):
    """The invocations of one `parallelize`, in the order of the calls."""

    __slots__ = ("__weakref__",)

    @property
    @abstractmethod
    def task(self) -> Task[Params, Result]:
        """The task that is called."""

    @abstractmethod
    def cancel(self, force: bool = False) -> None:
        """Cancel every invocation that has no outcome yet; see `BaseInvocation.cancel`."""

    @property
    @abstractmethod
    def results(self) -> Iterator[Result]:
        """The results in order, each as soon as it and those before it are there.

        Raises, when it comes to a call that failed, what the task raised. `outcomes` goes on.
        """

    @property
    @abstractmethod
    def outcomes(self) -> Iterator[Outcome[Result]]:
        """Results and exceptions side by side, in order, each as soon as it and those before it are there."""

    @abstractmethod
    def as_completed(self) -> Iterator[BaseInvocation[Params, Result]]:
        """The invocations as they get their final status."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have their final status, for `timeout` seconds at most; whether they have."""

    @property
    @abstractmethod
    def counts(self) -> dict[InvocationStatus, int]:
        """How many invocations have which status; statuses that none has are left out."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _at(self, index: int) -> BaseInvocation[Params, Result]: ...

    @property
    def app(self) -> Pynenc:
        """The app of the task."""
        return self.task.app

    @property
    def invocations(self) -> Sequence[BaseInvocation[Params, Result]]:
        """The invocations; each object is made when it is looked at."""
        return _Invocations(self)

    async def async_results(self) -> AsyncIterator[Result]:
        """The results in order, awaited; the event loop goes on meanwhile."""
        for invocation in self:
            yield await invocation.async_result()

    def __iter__(self) -> Iterator[BaseInvocation[Params, Result]]:
        return map(self._at, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> BaseInvocation[Params, Result]: ...
    @overload
    def __getitem__(self, index: slice) -> list[BaseInvocation[Params, Result]]: ...
    def __getitem__(self, index: int | slice) -> BaseInvocation[Params, Result] | list[BaseInvocation[Params, Result]]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"a group of {size} invocations has no index {index}")
        return self._at(index % size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} invocations, task={self.task.task_id})"


class _Invocations(Sequence[BaseInvocation[Params, Result]]):
    """A group seen as a sequence of its invocations."""

    def __init__(self, group: BaseInvocationGroup[Params, Result]) -> None:
        self._group = group

    def __len__(self) -> int:
        return len(self._group)

    @overload
    def __getitem__(self, index: int) -> BaseInvocation[Params, Result]: ...
    @overload
    def __getitem__(self, index: slice) -> list[BaseInvocation[Params, Result]]: ...
    def __getitem__(self, index: int | slice) -> BaseInvocation[Params, Result] | list[BaseInvocation[Params, Result]]:
        return self._group[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<the {len(self)} invocations of {self._group!r}>"
