"""The local cluster as a runner: calls go to the supervisor in batches, outcomes come back as they are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.client.asking import Asking
from pynenc.client.batcher import Packed, constant_of, is_collection, pack_items
from pynenc.client.imports import check_imported
from pynenc.exceptions import CycleDetectedError, RunnerError
from pynenc.invocation.distributed import (
    DistributedInvocation,
    DistributedInvocationGroup,
    Part,
    ReusedDistributedInvocation,
    whole,
)
from pynenc.prepared import PreparedCall, call_of, freeze_call, prepare
from pynenc.protocol.extras import Dependency, Extras, dependencies_column
from pynenc.protocol.messages import (
    MAX_BATCH_CALLS,
    Kind,
    bytes_frame,
)
from pynenc.runner import Submission
from pynenc.serializer import Freezes, Frozen, LazyFreezer, all_plain

if TYPE_CHECKING:
    from pynenc.blobs.ref import BlobRef
    from pynenc.task import Task


class ClusterRunner(Asking):
    """Runs the calls of one app in the worker processes of its supervisor."""

    # Submitting.

    def submit(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DistributedInvocation[Any, Any]:
        """Put one call into the open batch of its task, unless an invocation that is there already answers it."""
        if not kwargs and task.key_rules is None and all_plain(args):  # per call
            return self._submit(task, args)
        with self.in_hand:
            return self._submit(task, prepare(task, args, kwargs, freezer=self.blobs.freezer))

    def _submit(
        self, task: Task[Any, Any], entry: tuple[Any, ...] | Frozen | PreparedCall
    ) -> DistributedInvocation[Any, Any]:
        if self._connection is None or self._connection.lost is not None or self._is_changing:
            self._connect()
        if context.worker_of is not None:
            try:
                check_imported(task)
                self._check_cycle(task, entry)
            except (CycleDetectedError, RunnerError):
                self.discard_blobs([entry])
                raise
        if type(entry) is PreparedCall:
            self._batcher.flush()  # What it depends on has to be there before it.
            if task.key_rules is not None and task.key_rules.looks_up:
                from pynenc.client.lookup import Lookup

                submission, index, _, reused = Lookup(self, task).parts_of([entry])[0]
                if reused is not None:
                    return ReusedDistributedInvocation(task, submission, index, reused.diff_arg)
                return DistributedInvocation(task, submission, index)
        return DistributedInvocation(task, *self._batcher.add(task, entry))

    def submit_group(
        self, task: Task[Any, Any], items: Iterable[Any], common: dict[str, Any], name: str | None
    ) -> DistributedInvocationGroup[Any, Any]:
        """Send the calls in batches as the items come."""
        self._connect()
        if context.worker_of is not None:
            check_imported(task)
        self._batcher.flush()  # What they depend on has to be there before them.
        with self.in_hand, LazyFreezer(partial(self._sharing, is_collection(items))) as freezer:
            if not common:
                items = self.without_cycles(task, items)
            constant = constant_of(task)
            if common:
                constant = self._with_common_arguments(task, common, constant, freezer)
            if name is not None or (task.key_rules is not None and task.key_rules.looks_up):
                found = self._looked_up(task, items, common, name, constant, freezer)
                return DistributedInvocationGroup(task, self, found)
            parts: list[Part] = []
            group = 0
            for packed in pack_items(task, items, self._batch_calls(task), common, constant, freezer):
                parts.append(whole(self.submit_packed(task, packed, group)))
                group = group or parts[0].submission.number
            return DistributedInvocationGroup(task, self, parts)

    def put(self, value: Any) -> BlobRef[Any]:
        """Write a value into shared memory, for many calls."""
        with self.in_hand:
            self._connect()
            return self.blobs.put(value)

    def _looked_up(
        self,
        task: Task[Any, Any],
        items: Iterable[Any],
        common: dict[str, Any],
        name: str | None,
        constant: Extras,
        freezer: Freezes,
    ) -> list[Part]:
        from pynenc.client.lookup import Lookup, NamedGroup, joined, with_digest

        if name is not None:
            named = (with_digest(task, *call_of(task, item, common), common, freezer) for item in items)
            return joined(NamedGroup(self, task, name, constant).parts_of(named))
        lookup = Lookup(self, task, constant, common)
        calls = (prepare(task, *call_of(task, item, common), common, freezer) for item in items)
        parts: list[Part] = []
        while chunk := [call for call in islice(calls, self._batch_calls(task)) if isinstance(call, PreparedCall)]:
            parts += lookup.parts_of(chunk)
        return joined(parts)

    def _with_common_arguments(
        self, task: Task[Any, Any], common: dict[str, Any], constant: Extras, freezer: Freezes
    ) -> Extras:
        """Send what all calls of a group share, and have the calls refer to it."""
        entry = freeze_call(task, (), common, freezer)
        if isinstance(entry, PreparedCall):
            on = [Dependency(0, *one) for one in entry.dependencies]
            blobs = b"".join(blob.to_bytes() for blob in dict.fromkeys(entry.blobs))
            constant = constant._replace(dependencies=dependencies_column(on), blobs=blobs)
            entry = entry.entry
        assert isinstance(entry, Frozen)
        token = next(self._tokens)
        answer = self._answer_to(bytes_frame(Kind.COMMON, token, entry), token)
        return constant._replace(common=int(answer["number"]))

    def _sharing(self, is_collection: bool) -> AbstractContextManager[Freezes]:
        return self.blobs.sharing(is_collection)

    def discard_blobs(self, calls: Iterable[Any]) -> None:
        """Free the blobs of calls that were not sent."""
        for call in calls:
            if isinstance(call, PreparedCall) and call.blobs:
                self.blobs.discard(call.blobs)

    def stream(self, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None) -> Iterator[Any]:
        """Send calls as results are taken, so that at most `in_flight` are under way."""
        from pynenc.client.stream import stream

        if context.worker_of is not None:
            check_imported(task)
        return stream(self, task, items, ordered, in_flight)

    def submit_packed(self, task: Task[Any, Any], packed: Packed, group: int) -> Submission:
        """Send one batch of a group or a stream."""
        with self._lock:  # No other thread closes the connection between a batch's number and its way.
            self._connect()
            submission = self._open_batch()
            self._send_packed(task, submission, packed, group)
        return submission

    def _send_packed(self, task: Task[Any, Any], submission: Submission, packed: Packed, group: int) -> None:
        submission.count = submission.unfinished = packed.count
        if packed.extras.dependencies:
            self._batcher.flush()  # They may have been made by whatever gave the items.
        self._send_batch(task, submission, packed, group or submission.number, self._caller())

    def offer(
        self, task: Task[Any, Any], packed: Packed, group: int
    ) -> tuple[Submission | None, list[tuple[int, int, int, bool]]]:
        """Send one batch, to be taken if no equal call waits already; else those of its calls for which one does.

        Each of them is its index here, the batch and the index there, and whether its arguments differ.
        """
        with self._lock:
            self._connect()
            submission = self._open_batch()
            number = submission.number
            self._handover.offered.add(number)
            self._send_packed(task, submission, packed, group)
        self._wait_through(
            self._live_connection(), lambda: number in self._answers or not submission.runner.runs_calls, None
        )
        self._handover.offered.discard(number)
        if number not in self._answers:
            # Its supervisor died, and it may not be offered again: this says so.
            submission.runner.wait_until(lambda: False)
        reused = self._answers.pop(number)["reused"]
        if not reused:
            return submission, []
        self._held.pop(number, None)
        return None, [tuple(one) for one in reused]

    def _check_cycle(self, task: Task[Any, Any], call: tuple[Any, ...] | Frozen | PreparedCall) -> None:
        caller = self._caller()
        if caller is not None and caller.is_above(task):
            caller.check(task, call)

    def without_cycles(self, task: Task[Any, Any], items: Iterable[Any]) -> Iterable[Any]:
        """Items of a `parallelize` or a stream, none of which is a call from inside of which this is.

        Raises:
            CycleDetectedError: One of them is; for what is no list, when it is taken.
        """
        self._connect()
        caller = self._caller()
        if caller is None or not caller.is_above(task):
            return items
        if isinstance(items, list):  # Looked at beforehand: a list is sent faster than an iterator.
            for item in items:
                caller.check_item(task, item)
            return items
        return caller.checked(task, items)

    def _batch_calls(self, task: Task[Any, Any]) -> int:
        return min(task.conf.parallel_batch_size or MAX_BATCH_CALLS, MAX_BATCH_CALLS)
