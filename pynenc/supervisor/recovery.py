"""What supervisors before this one have left unfinished: found, taken up, and told of to whoever waits for it.

A supervisor that was killed has left batches above the mark of `state_backend/shelf.py`; they are taken up without being
asked for. What was stopped on purpose lies on the shelf until a client asks. Each batch is taken up once, whoever comes
first: the search, the client that had made it, a rerun of its named group, `pynenc resume`.

With a batch those are taken up whose results its calls take, and before it: its own client may be the first to come, and
the rules would believe that nobody runs them. Who asks for a batch that is shelved asks for those as well.

A batch that was made by a call which is run again is not taken up: that call makes it anew. It ends as cancelled.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable

from pynenc.named_tuples import NamedTuple
from pynenc.protocol.extras import Extras
from pynenc.protocol.messages import BATCH_NUMBER_BITS, Batch, Failure, Results, split_number
from pynenc.state_backend.reader import TaskCounts
from pynenc.state_backend.store import Store
from pynenc.supervisor.endings import Endings
from pynenc.supervisor.events import BatchArrived, BatchRecovered, Event, TaskDeclared, TaskOptions
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.task import Task

SLICE = 64
"""So many batches are taken up between two looks at the connections."""


class Found(NamedTuple):
    """A batch that is to be taken up.

    Attributes:
        remade: Whether the call that made it is run again, and makes it anew.
        client: The client that asked for it; 0 when none did.
    """

    batch: int
    remade: bool
    client: int


class Resumption:
    """What a client has asked to be resumed, and waits for.

    Attributes:
        batches: Those that are not finished yet.
        left: How many calls of them have no outcome yet.
    """

    def __init__(
        self, client: int, begun: Callable[[list[tuple[int, int]], list[TaskCounts]], None], ended: Callable[[], None]
    ) -> None:
        self.client = client
        self.begun = begun
        self.ended = ended
        self.batches: set[int] = set()
        self.left = 0


class Recovery:
    """Takes up what is left.

    Args:
        store: Where it lies.
        orchestrator: Is told of it, and knows what is under way.
        payloads: Holds its arguments.
        endings: Has the words for calls that must not run again.
        tasks: By their numbers.
        happened: Takes events.
        keep: Takes outcomes that are decided here.
        batch_ended: Is told of batches all of whose calls have theirs because of that.

    Attributes:
        coming: The batches of this turn, sent or taken up, of which the orchestrator has not heard yet.
        taken: The unfinished batches that were taken up here and whose own client is not connected, and the client that
            asked for each, or 0.
        leaving: Batches that are just being stopped.
        again: Those of them that are to be taken up when they are.
        has_begun: Whether it is known what is left.
        resumptions: What clients wait for.
    """

    def __init__(
        self,
        store: Store,
        orchestrator: Orchestrator,
        payloads: Payloads,
        endings: Endings,
        tasks: dict[int, Task],
        happened: Callable[[Event], None],
        keep: Callable[[Failure], None],
        batch_ended: Callable[[int], None],
    ) -> None:
        self._store = store
        self._shelf = store.shelf
        self._orchestrator = orchestrator
        self._payloads = payloads
        self._endings = endings
        self._tasks = tasks
        self._happened = happened
        self._keep = keep
        self._batch_ended = batch_ended
        self.has_begun = False
        self._searched: int | None = None
        self._is_searching = False
        self._found: deque[Found] = deque()
        self._remade: set[int] = set()
        self.coming: set[int] = set()
        self._asked: list[Resumption] = []
        self.taken: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.again: dict[int, int] = {}
        self.resumptions: list[Resumption] = []

    # Finding.

    def begin(self) -> None:
        """Look for what a supervisor that was killed has left; `step` does it piece by piece."""
        self._searched = self._shelf.first_unsettled - 1
        self._is_searching = self.has_begun = True

    def step(self) -> None:
        """Do a little of what is to be done."""
        if self._is_searching:
            assert self._searched is not None
            rows, self._searched = self._shelf.unfinished_after(self._searched)
            self._is_searching = self._searched is not None
            self._found += self._judged(rows, 0)
        elif self._found:
            piece = [self._found.popleft() for _ in range(min(SLICE, len(self._found)))]
            self._take_up_all(piece)
        elif self._asked and not self.coming & self.taken.keys():  # Of these the rules know nothing yet.
            self._tell_what_is_resumed()

    def drop(self) -> None:
        """Forget what was found and not taken up yet: it is purged."""
        self._is_searching, self.has_begun = False, True
        self._found.clear()
        self._remade.clear()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._is_searching or self._found or self._asked)

    @property
    def is_done(self) -> bool:
        """Whether all that was left is taken up."""
        return not (self.has_work or self.again)

    def is_there(self, batch: int) -> bool:
        """Whether a batch is under way, or just about to be."""
        return batch in self.again or batch in self.coming or self._is_under_way(batch)

    def _is_under_way(self, batch: int) -> bool:
        return batch in self._orchestrator.batches and batch not in self.leaving

    def _judged(self, rows: Iterable[tuple[int, int]], client: int) -> list[Found]:
        """Say of each batch, given with the invocation that made it, whether that one makes it anew.

        Before any of them runs: once their parents are finished it cannot be told any more.
        """
        found = []
        for batch, parent in rows:
            remade = bool(parent) and (batch in self._remade or self._is_rerun(parent))
            if remade:
                self._remade.add(batch)
            found.append(Found(batch, remade, client))
        return found

    def _found_again(self, batches: Iterable[int], client: int) -> list[Found]:
        """The same of batches of which only the number is known."""
        return self._judged(((batch, self._store.parent_of(batch) or 0) for batch in batches), client)

    def _is_rerun(self, invocation: int) -> bool:
        """Whether a call that was left unfinished is run again; or the one that made it, which makes it anew."""
        batch = split_number(invocation)[0]
        parent = self._store.parent_of(batch)
        if parent is None or self._store.has_ended(invocation):
            return False
        stored = self._store.batch(batch)
        assert stored is not None
        return self._know_task(stored.task).rerun_on_worker_loss or (parent != 0 and self._is_rerun(parent))

    # Taking up.

    def adopt(self, client: int, batch: int) -> tuple[bool, list[Results | Failure]]:
        """Take a batch up for a client that comes over from another supervisor and knows it.

        Returns:
            Whether it is in the state backend; and the outcomes that its calls have had.
        """
        parent = self._store.parent_of(batch)
        if parent is None:
            return False, []
        results, failures = self._store.outcomes_of(batch)
        if not self.is_there(batch):
            self._take_up_all(self._judged([(batch, parent)], client))
        self.taken.pop(batch, None)
        return True, [*results, *failures]

    def take_up_for(self, dependencies: Iterable[int]) -> None:
        """A new batch takes results of these: those that a supervisor that was killed has left are not to be found later."""
        if self.is_done:
            return
        left = [batch for batch in dependencies if self._is_left(batch) and not self._shelf.has(batch)]
        if left:
            self._take_up_all(self._found_again(left, 0))

    def _is_left(self, batch: int) -> bool:
        """Whether nobody runs a batch that is not finished."""
        is_known = batch in self._orchestrator.batches or self.is_there(batch)
        return not is_known and self._store.is_unfinished(batch)

    def take_up_group(self, group: int, client: int) -> None:
        """Take up those batches of a named group that are unfinished, and what their calls had made."""
        rows = [row for row in self._shelf.unfinished_of_group(group) if not self.is_there(row[0])]
        if not rows:
            return
        family = {batch for batch, _ in rows}
        made = [row for row in self._shelf.shelved() if row[1]]
        while more := [one for one, parent in made if split_number(parent)[0] in family and one not in family]:
            family.update(more)
        # The call that asks for the group may be the one that had made it, and is just being run again.
        own = [(one, 0 if self.is_there(split_number(parent)[0]) else parent) for one, parent in rows]
        others = [row for row in made if row[0] in family and row not in rows]
        self._take_up_all(self._judged([*own, *others], client))

    def resume(self, resumption: Resumption) -> None:
        """Take up all that is left and all that is shelved; the resumption is of that and of all else that was taken up here."""
        if not self.has_begun:
            self.begin()
        self._found += self._judged(self._shelf.shelved(), resumption.client)
        self._asked.append(resumption)

    def _tell_what_is_resumed(self) -> None:
        asked, self._asked = self._asked, []
        for one in asked:
            one.batches = set(self.taken)
            one.left = sum(self._orchestrator.batches[batch].unfinished for batch in one.batches)
            ranges = _ranges(sorted(one.batches))
            one.begun(ranges, self._shelf.counts_of(ranges))
            if one.batches:
                self.resumptions.append(one)
            else:
                one.ended()

    def _take_up_all(self, piece: list[Found]) -> None:
        for one in piece:
            if one.batch in self.leaving and one.batch in self._orchestrator.batches:
                self.again[one.batch] = one.client
        self._remade.difference_update(one.batch for one in piece)
        piece = self._with_dependencies([one for one in piece if not self.is_there(one.batch)])
        self._remade.difference_update(one.batch for one in piece)
        shelved = self._shelf.take(one.batch for one in piece)
        for one in piece:
            self._take_up(one, one.batch in shelved)

    def _with_dependencies(self, piece: list[Found]) -> list[Found]:
        """These batches and those whose results they take, as far as nobody runs them; each behind those that it waits for."""
        own = {one.batch: one for one in piece}
        in_order: list[Found] = []
        seen: set[int] = set()
        todo = [(one, False) for one in reversed(piece)]
        while todo:
            one, is_last = todo.pop()
            if is_last:
                in_order.append(one)
            elif one.batch not in seen:
                seen.add(one.batch)
                todo.append((one, True))
                if one.remade:
                    continue  # It ends, and takes nothing.
                is_asked_for = self._shelf.has(one.batch)
                for batch in sorted(self._store.dependencies_of(one.batch) - seen, reverse=True):
                    if batch in own:
                        todo.append((own[batch], False))
                    elif self._is_left(batch) and (is_asked_for or not self._shelf.has(batch)):
                        todo += [(found, False) for found in self._found_again([batch], one.client)]
        return in_order

    def _take_up(self, found: Found, is_shelved: bool) -> None:
        number = found.batch
        batch = self._store.batch(number)
        if batch is None:
            return  # It was purged.
        results, failures = self._store.outcomes_of(number)
        succeeded, failed = [one[1:3] for one in results], [one[1:3] for one in failures]
        left = batch.count - sum(stop - first for first, stop in (*succeeded, *failed))
        if not left:
            return
        may_rerun = self._know_task(batch.task).rerun_on_worker_loss
        if found.remade:
            self._end(batch, [*succeeded, *failed], self._endings.of_remade)
        elif not may_rerun and not is_shelved:
            # Some of them may have begun. Of what was stopped on purpose it is known that they have not.
            self._end(batch, [*succeeded, *failed], self._endings.of_dead_supervisor)
        else:
            extras = Extras.from_bytes(batch.extras, batch.count)
            arrived = BatchArrived(number, batch.task, batch.count, batch.group or number >> BATCH_NUMBER_BITS, extras)
            self._payloads.add(batch)
            self.coming.add(number)
            self.taken[number] = found.client
            self._happened(BatchRecovered(arrived, succeeded, failed, self._store.retries_of(number)))

    def _end(self, batch: Batch, ended: list[tuple[int, int]], why: Callable[[Batch, int, int], Failure]) -> None:
        """End those calls of a batch that have not ended."""
        start = 0
        for first, stop in [*sorted(ended), (batch.count, batch.count)]:
            if start < first:
                self._keep(why(batch, start, first))
            start = stop
        self._batch_ended(batch.id)

    def _know_task(self, number: int) -> TaskOptions:
        """Take in a task that a client has declared to another supervisor."""
        task_id, options, context = self._store.task(number)
        rules = TaskOptions(**json.loads(options))
        if number not in self._tasks:
            self._tasks[number] = Task(number, task_id, json.loads(context))
            self._happened(TaskDeclared(number, rules))
        return rules

    # What is told while it goes on.

    def arrived(self) -> None:
        """The orchestrator has been told of all that has come."""
        self.coming.clear()

    def outcomes_kept(self, batch: int, count: int) -> None:
        """Calls have their outcomes."""
        for one in self.resumptions:
            if batch in one.batches:
                one.left -= count

    def finished(self, batch: int) -> None:
        """Nothing of a batch is under way any more."""
        self.taken.pop(batch, None)
        if batch in self.leaving:
            self.leaving.discard(batch)
            client = self.again.pop(batch, None)
            if client is not None:
                self._found += self._found_again([batch], client)
        if self.resumptions:
            for one in self.resumptions:
                one.batches.discard(batch)
                if not one.batches:
                    one.ended()
            self.resumptions = [one for one in self.resumptions if one.batches]

    def forget(self, client: int) -> None:
        """A client is gone, and waits for nothing any more."""
        self._asked = [one for one in self._asked if one.client != client]
        self.resumptions = [one for one in self.resumptions if one.client != client]


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Numbers in order as ranges `[first, stop)`."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges
