"""Calls that may be answered by invocations which are there already.

Three rules look before they run: `registration_concurrency` (an equal call that waits), `call_result_cache` (a stored
result), and the names of groups (what an earlier run of the script had done).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Any

from pynenc.blobs.references import refers
from pynenc.client.batcher import pack_entries
from pynenc.exceptions import (
    BlobLostError,
    InvocationConcurrencyWithDifferentArgumentsError,
    NamedGroupChangedError,
)
from pynenc.invocation.distributed import Part, Reuse
from pynenc.prepared import CallKeys, PreparedCall, args_from, prepare
from pynenc.protocol.extras import KEY_BYTES, NONE, Extras, key_at
from pynenc.protocol.messages import MAX_BATCH_CALLS, split_number
from pynenc.runner import Submission
from pynenc.serializer import Freezes

if TYPE_CHECKING:
    from pynenc.client.runner import ClusterRunner
    from pynenc.task import Task

SHOWN = 5
"""How many changed items an error names."""


class Lookup:
    """Finds or makes the invocations of some calls of a task.

    Args:
        runner: The client's runner.
        task: The task.
        constant: What holds for all calls alike.
        common: The arguments that they share.
    """

    def __init__(
        self,
        runner: ClusterRunner,
        task: Task[Any, Any],
        constant: Extras = NONE,
        common: Mapping[str, Any] | None = None,
    ) -> None:
        self._runner = runner
        self._task = task
        self._constant = constant
        self._common = common
        self._group = 0
        self._known: dict[int, Submission] = {}

    def parts_of(self, calls: Sequence[PreparedCall]) -> list[Part]:
        """An invocation for each call, in their order."""
        found: dict[int, Part] = {}
        if calls and calls[0].keys.cache:
            numbers = self._runner.stored().cached([call.keys.cache for call in calls])
            found = {at: self._attached(number, Reuse()) for at, number in enumerate(numbers) if number}
            found = {at: part for at, part in found.items() if _can_be_read(part)}
        left = [at for at in range(len(calls)) if at not in found]
        if calls and calls[0].keys.registration:
            self._register(calls, left, found)
        else:
            self._send(calls, left, found)
        self._runner.discard_blobs(calls[at] for at, part in found.items() if part.reused is not None)
        return [found[at] for at in range(len(calls))]

    def _send(self, calls: Sequence[PreparedCall], left: list[int], found: dict[int, Part]) -> None:
        at = iter(left)
        for packed in pack_entries((calls[one] for one in left), self._constant):
            submission = self._runner.submit_packed(self._task, packed, self._group)
            self._group = self._group or submission.number
            found.update((one, Part(submission, i, i + 1)) for i, one in enumerate(islice(at, packed.count)))

    def _register(self, calls: Sequence[PreparedCall], left: list[int], found: dict[int, Part]) -> None:
        first_of_key: dict[bytes, int] = {}
        for at in left:
            first_of_key.setdefault(calls[at].keys.registration, at)
        offered = sorted(first_of_key.values())
        while offered:
            # As many as fit into a batch; when some of them are there already, the others are offered again.
            packed = next(pack_entries((calls[at] for at in offered), self._constant))
            submission, reused = self._runner.offer(self._task, packed, self._group)
            taken = offered[: packed.count]
            if submission is not None:
                self._group = self._group or submission.number
                found.update((at, Part(submission, i, i + 1)) for i, at in enumerate(taken))
                offered = offered[packed.count :]
                continue
            for index, batch, there, differs in reused:
                found[taken[index]] = self._reused(batch, there, calls[taken[index]] if differs else None)
            offered = [at for at in offered if at not in found]
        for at in left:
            if at not in found:  # A call with the same key stands before it among these.
                equal = first_of_key[calls[at].keys.registration]
                differs = calls[at].keys.arguments != calls[equal].keys.arguments
                number, index = found[equal].submission.number, found[equal].first
                found[at] = self._reused(number, index, calls[at] if differs else None)

    def _reused(self, batch: int, index: int, different: PreparedCall | None) -> Part:
        submission = self._submission(batch)
        if different is None:
            return Part(submission, index, index + 1, Reuse())
        arguments = args_from(self._task, different.entry, self._common)
        if self._task.conf.on_diff_non_key_args_raise:
            there = submission.runner.arguments_of(self._task, submission, index)
            raise InvocationConcurrencyWithDifferentArgumentsError(
                self._task.task_id,
                f"invocation {submission.invocation_id(index)} waits already with the same key, but with {there}, not {arguments}",
            )
        return Part(submission, index, index + 1, Reuse(arguments))

    def _attached(self, number: int, reused: Reuse) -> Part:
        batch, index = split_number(number)
        return Part(self._submission(batch), index, index + 1, reused)

    def _submission(self, batch: int) -> Submission:
        submission = self._known.get(batch)
        if submission is None:
            submission = self._known[batch] = self._runner.submission_of(batch)
        return submission


def joined(parts: Iterable[Part]) -> list[Part]:
    """Parts that lie side by side as one."""
    made: list[Part] = []
    for part in parts:
        if made and _follows(made[-1], part):
            made[-1] = made[-1]._replace(stop=part.stop)
        else:
            made.append(part)
    return made


def _follows(before: Part, part: Part) -> bool:
    return part.submission is before.submission and part.first == before.stop and part.reused == before.reused


_ITEM = Struct("<I")


class NamedGroup:
    """A group that another run of the script finds again by its name.

    Each batch says which items its calls are, and has the digests of their arguments. For each item the latest
    call counts.
    """

    def __init__(self, runner: ClusterRunner, task: Task[Any, Any], name: str, constant: Extras) -> None:
        self._runner = runner
        self._task = task
        self._name = name
        self._constant = constant
        self._group = 0

    def parts_of(self, calls: Iterator[PreparedCall]) -> list[Part]:
        """An invocation for each item: taken over when it has succeeded or is still to run, else made.

        The supervisor has what is unfinished run under its old numbers, and lets one script at a time make the rest.
        """
        number = self._runner.next_batch_number()
        self._group = int(
            self._runner.ask("name_group", task=self._task.task_id, name=self._name, group=number)["group"]
        )
        try:
            return self._send(enumerate(calls)) if self._group == number else self._resumed(calls)
        finally:
            self._runner.ask("group_made", group=self._group)

    def _resumed(self, calls: Iterator[PreparedCall]) -> list[Part]:
        recorded, latest = self._recorded()
        items = list(calls)
        self._check_same(recorded, items)
        parts = {at: part for at, part in latest.items() if _counts(part)}
        missing = [(at, call) for at, call in enumerate(items) if at not in parts]
        self._runner.discard_blobs(call for at, call in enumerate(items) if at in parts)
        made = self._send(iter(missing))
        parts.update(zip((at for at, _ in missing), _single(made), strict=True))
        return [parts[at] for at in range(len(items))]

    def _send(self, calls: Iterator[tuple[int, PreparedCall]]) -> list[Part]:
        parts = []
        while chunk := list(islice(calls, MAX_BATCH_CALLS)):
            at = 0
            for packed in pack_entries((call for _, call in chunk), self._constant):
                items = b"".join(_ITEM.pack(item) for item, _ in chunk[at : at + packed.count])
                at += packed.count
                packed = packed._replace(extras=packed.extras._replace(items=items))
                parts.append(Part(self._runner.submit_packed(self._task, packed, self._group), 0, packed.count))
        return parts

    def _recorded(self) -> tuple[dict[int, bytes], dict[int, Part]]:
        """The digest of each item that was sent, and its latest call."""
        digests: dict[int, bytes] = {}
        latest: dict[int, Part] = {}
        backend = self._runner.stored()
        for number in backend.named_batches(self._group):
            stored = backend.batch(number)
            if stored is None:
                continue
            extras = Extras.from_bytes(stored.extras, stored.count)
            submission = self._runner.submission_of(number)
            for index, (item,) in enumerate(_ITEM.iter_unpack(extras.items)):
                digests[item] = key_at(extras.arguments, index)
                part = Part(submission, index, index + 1, Reuse())
                if item not in latest or not _counts(latest[item]):
                    latest[item] = part
        return digests, latest

    def _check_same(self, recorded: dict[int, bytes], items: list[PreparedCall]) -> None:
        changed = [at for at, call in enumerate(items) if recorded.get(at, call.keys.arguments) != call.keys.arguments]
        missing = [at for at in sorted(recorded) if at >= len(items)]
        for what, which in (("have other arguments than", changed), ("are missing that were there", missing)):
            if which:
                shown = ", ".join(map(str, which[:SHOWN])) + (", ..." if len(which) > SHOWN else "")
                raise NamedGroupChangedError(
                    self._task.task_id,
                    f"group {self._name!r}: {len(which):,} of its items (counted from 0: {shown}) {what} when it was made; give "
                    "another name to a group of other items",
                )


def _counts(part: Part) -> bool:
    """Whether a call has succeeded or is still to come."""
    submission = part.submission
    if part.first in submission.failures:
        return False
    if submission.stretch_of(part.first) is not None:
        return _can_be_read(part)
    return submission.runner.runs_calls


def _can_be_read(part: Part) -> bool:
    """Whether a result is still there: large ones are lost when the machine is started anew."""
    stretch = part.submission.stretch_of(part.first)
    if stretch is None or not refers(stretch.payload):
        return True
    try:
        part.submission.value(part.first)
    except BlobLostError:
        return False
    return True


def _single(parts: Iterable[Part]) -> Iterator[Part]:
    for submission, first, stop, reused in parts:
        yield from (Part(submission, index, index + 1, reused) for index in range(first, stop))


def with_digest(
    task: Task[Any, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    common: dict[str, Any],
    freezer: Freezes | None = None,
) -> PreparedCall:
    """A call of a named group, with the digest of its arguments."""
    from pynenc.arguments import Arguments

    call = prepare(task, args, kwargs, common, freezer)
    digest = Arguments.from_call(task.func, *args, **kwargs, **common).digest[:KEY_BYTES]
    if isinstance(call, PreparedCall):
        return call._replace(keys=call.keys._replace(arguments=digest))
    return PreparedCall(call, CallKeys(arguments=digest))
