"""What clients go on with: their batches of a supervisor that died, named groups, and what `pynenc resume` asks for.

Each of them looks into the database, so each waits until all that has come is in it. Runs in the supervisor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynenc.protocol.fields import Fields
from pynenc.protocol.messages import BATCH_NUMBER_BITS, MAX_BATCH, Kind, json_frame
from pynenc.state_backend.reader import TaskCounts
from pynenc.state_backend.store import Store
from pynenc.supervisor.client import Client
from pynenc.supervisor.delivery import Delivery
from pynenc.supervisor.groups import Groups
from pynenc.supervisor.recovery import Recovery, Resumption

MAX_CLIENT = MAX_BATCH >> BATCH_NUMBER_BITS


class TakingUp:
    """Has clients go on.

    Args:
        store: Where it lies.
        recovery: Takes it up.
        delivery: Tells them.
        once_committed: Does something as soon as the database has all that has come.
    """

    def __init__(
        self,
        store: Store,
        recovery: Recovery,
        delivery: Delivery,
        once_committed: Callable[[Callable[[], None]], None],
    ) -> None:
        self._store = store
        self._recovery = recovery
        self._delivery = delivery
        self._once_committed = once_committed
        self._groups = Groups()

    def adopt(self, client: Client, fields: Fields) -> None:
        """A client comes from a supervisor that died: what that one had committed and not finished is run here."""
        numbers, batches = fields.integers("clients", MAX_CLIENT), fields.integers("batches", MAX_BATCH)
        token = fields.integer("token", default=0)
        for number in numbers:
            self._delivery.clients.setdefault(number, client)
        client.numbers.update(numbers)
        if numbers:
            self._store.shelf.unsettle(min(numbers))

        def take_up() -> None:
            unknown = [number for number in batches if not self._recover(client, number)]
            self._delivery.answer(client, json_frame(Kind.REPORT, token=token, unknown=unknown))

        self._once_committed(take_up)

    def _recover(self, client: Client, number: int) -> bool:
        """Have a batch run that was committed by another supervisor; False when none was."""
        is_known, outcomes = self._recovery.adopt(client.number, number)
        if is_known and self._delivery.clients.get(number >> BATCH_NUMBER_BITS) is not client:
            self._delivery.add_watcher(client, number)
        self._delivery.outcomes += outcomes
        return is_known

    def name_group(self, client: Client, task: str, name: str, fresh: int, token: int) -> None:
        """Answer with the group of a name, as soon as nobody else makes calls of it; those that it has go on."""
        group = self._store.name_group(task, name, fresh)
        client.needs.add(group)

        def go_on() -> None:
            if not client.peer.open:
                return
            if group != fresh:
                self._recovery.take_up_group(group, client.number)
            self._delivery.after_commit(client.peer, json_frame(Kind.REPORT, token=token, group=group))

        self._groups.claim(group, client.number, lambda: self._once_committed(go_on))

    def group_made(self, client: Client, group: int) -> None:
        """A client has made all calls of a group that were missing."""
        self._groups.release(group, client.number)

    def resume(self, client: Client, token: int, ended: int) -> None:
        """Take up what nobody runs. The client is told what that is, and later that it has ended.

        Args:
            client: Whoever asks.
            token: Names the question.
            ended: Names the message that all of it has ended.
        """

        def tell(token: int, **fields: Any) -> None:
            self._delivery.after_commit(client.peer, json_frame(Kind.REPORT, token=token, **fields))

        def begun(batches: list[tuple[int, int]], counts: list[TaskCounts]) -> None:
            for first, stop in batches:
                client.needs.update(range(first, stop))  # It counts how they have ended.
            tell(token, batches=batches, counts=counts)

        resumption = Resumption(client.number, begun, ended=lambda: tell(ended))
        self._once_committed(lambda: self._recovery.resume(resumption) if client.peer.open else None)

    def left_of(self, client: Client) -> int:
        """How many calls of what a client has resumed have no outcome yet."""
        return sum(one.left for one in self._recovery.resumptions if one.client == client.number)

    def forget(self, client: Client) -> None:
        """A client is gone, and goes on with nothing."""
        self._recovery.forget(client.number)
        self._groups.forget(client.number)
