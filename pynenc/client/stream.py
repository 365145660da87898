"""Streams: results of an endless or huge iterable, with a bounded number of calls under way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from pynenc.blobs.references import refers, size_of_column
from pynenc.client.batcher import Chunks, constant_of
from pynenc.invocation.distributed import DistributedInvocation, wait_stretches, whole
from pynenc.prepared import call_of
from pynenc.protocol.messages import Packing, invocation_number
from pynenc.runner import Submission
from pynenc.serializer import LazyFreezer

if TYPE_CHECKING:
    from pynenc.client.runner import ClusterRunner
    from pynenc.task import Task

Part = TypeVar("Part")

FIRST_IN_FLIGHT = 16
MAX_IN_FLIGHT = 16_384
STREAM_PARTS = 8
"""The large arguments of the calls that are under way take about this part of the shared memory, and so may their results."""

SHORT_S = 0.05
"""A window that is through in less than this is too small to keep the workers busy."""


class Window:
    """How many calls may be under way. It grows while calls are short, so that long ones are not piled up."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit or MAX_IN_FLIGHT
        self.size = min(FIRST_IN_FLIGHT, self._limit)
        self._through = 0
        self._since = time.monotonic()

    def passed(self, count: int) -> None:
        """So many calls have come back."""
        self._through += count
        if self._through >= self.size:
            now = time.monotonic()
            if now - self._since < SHORT_S:
                self.size = min(2 * self.size, self._limit)
            self._through, self._since = 0, now


def stream(
    runner: ClusterRunner, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None
) -> Iterator[Any]:
    """Send calls as their results are taken."""
    if task.key_rules is not None and task.key_rules.looks_up:
        yield from _stream_calls(runner, task, items, ordered, in_flight)
        return
    freezer = LazyFreezer(lambda: nullcontext(runner.blobs.freezer))
    calls = runner.without_cycles(task, items)
    chunks = Chunks(task, calls, constant=constant_of(task), freezer=freezer, keeps_error=True)
    window = Window(in_flight)
    under_way: deque[Submission] = deque()
    blob_bytes: dict[int, int] = {}
    count = group = 0
    while True:
        while count < window.size and not _is_full(runner, blob_bytes):
            with runner.in_hand:
                batches = chunks.take(max(1, min(window.size // 8, window.size - count)))
                for packed in batches:
                    under_way.append(runner.submit_packed(task, packed, group))
                    if packed.extras.blobs:
                        blob_bytes[under_way[-1].number] = size_of_column(packed.extras.blobs)
                    group = group or under_way[-1].number
                    count += packed.count
            if not batches:
                break
        if not under_way:
            if chunks.error is not None:
                raise chunks.error
            return
        if not ordered:
            _bring_forward(runner, under_way, lambda one: not one.unfinished, list(under_way))
        submission = under_way.popleft()
        for stretch, values in wait_stretches(whole(submission)):
            if stretch.packing != Packing.ROWS or not refers(stretch.payload):
                yield from values
                continue
            # Nobody can ask for these again. What is mapped here stays until it is gone, here.
            runner.blobs.drop_results([invocation_number(stretch.batch, stretch.first)])
            while values:
                yield values.pop(0)
        blob_bytes.pop(submission.number, None)
        count -= submission.count
        window.passed(submission.count)


def _is_full(runner: ClusterRunner, blob_bytes: dict[int, int]) -> bool:
    """Whether what is under way takes its part of the shared memory."""
    return bool(blob_bytes) and sum(blob_bytes.values()) > runner.blobs.budget_bytes // STREAM_PARTS


def _stream_calls(
    runner: ClusterRunner, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None
) -> Iterator[Any]:
    """The same for calls that may be answered by invocations that are there already, which are looked up one by one."""
    under_way: deque[DistributedInvocation[Any, Any]] = deque()
    failure: Exception | None = None
    source = iter(items)
    while True:
        try:
            for item in islice(source, (in_flight or FIRST_IN_FLIGHT) - len(under_way)):
                under_way.append(runner.submit(task, *call_of(task, item)))
        except Exception as error:  # the user's own iterator, or no valid call
            source, failure = iter(()), error
        if not under_way:
            if failure is not None:
                raise failure
            return
        if not ordered:
            _bring_forward(runner, under_way, lambda one: one.has_outcome, [one.submission for one in under_way])
        yield under_way.popleft().result


def _bring_forward(
    runner: ClusterRunner, under_way: deque[Part], is_finished: Callable[[Part], bool], awaited: list[Submission]
) -> None:
    """Wait until a part is finished, and bring it to the front."""
    runner.wait_until(lambda: any(is_finished(one) for one in under_way), None, awaited)
    under_way.rotate(-next(at for at, one in enumerate(under_way) if is_finished(one)))
