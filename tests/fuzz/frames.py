"""Makes frames that clients and workers could send: right ones, odd ones, and mutated ones. All by one seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pynenc.blobs.references import Reference, to_column
from pynenc.protocol.extras import KEY_BYTES, Dependency, Extras, dependencies_column
from pynenc.protocol.frames import HEADER, HEADER_BYTES, frame
from pynenc.protocol.messages import (
    Batch,
    Ending,
    Failure,
    Kind,
    Packing,
    Pause,
    Results,
    bytes_frame,
    json_frame,
    number_frame,
    rows_payload,
)
from tests.fuzz import canary

U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
EDGES = [0, 1, 2, 511, 512, 1023, 1024, 1025, 1 << 31, U32, 1 << 53, (1 << 63) - 1, 1 << 63, U64]
TIMES = [0.0, 1.0, -1.0, -2.0, 0.5, 1e300, float("inf"), float("-inf"), float("nan")]
DEEP = "[" * 100_000
ODD_JSON: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    1e300,
    "",
    "x",
    "\ud800",
    [],
    [1],
    [[1, 0, 1]],
    [[]],
    {},
    {"a": 1},
    *EDGES,
]
QUESTIONS = [*3 * ["status", "counts", "report", "name_group"], "stop it", ""]
OPTIONS: dict[str, Any] = {
    "max_worker_losses": 1,
    "rerun_on_worker_loss": True,
    "max_retries": 2,
    "retry_delay_s": 0.0,
    "retry_backoff": 2.0,
    "retry_max_delay_s": 1.0,
    "retry_jitter": 0.0,
    "timeout_s": 0.0,
    "retry_on_timeout": False,
    "expires_s": 0.0,
    "priority": 0,
    "max_running": 1,
    "reroute": True,
    "concurrency": 0,
}


class Frames:
    """One side of a conversation that goes wrong.

    Args:
        chance: Where every choice comes from.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._made = 0

    def of_client(self, client: int, batches: list[int]) -> bytes:
        """Something that a client could send.

        Args:
            client: Its number.
            batches: Numbers that mean something just now; new ones are added.
        """
        makers: list[Callable[[int, list[int]], bytes]] = [
            *4 * [self._batch],
            self._task,
            self._cancel,
            self._query,
            self._adopt,
            self._small,
        ]
        return self.chance.choice(makers)(client, batches)

    def of_worker(self, worker: int, batches: list[int], position: int) -> bytes:
        """Something that a worker could send that has lost its senses."""
        chance = self.chance
        odd = self._odd
        batch, first = self._known(batches), odd(0, self._edge() & U32, 0.2)
        stop = min(U32, first + odd(1, chance.choice([0, 2, 512]), 0.2))
        times = odd(1.0, chance.choice(TIMES)), odd(2.0, chance.choice(TIMES))
        kind = chance.randrange(5)
        if kind == 0:
            count = max(0, min(stop - first, 1024))
            ends = b"12345678" * odd(count, chance.randrange(3))
            packing, payload = self._payload(count)
            return Results(batch, first, stop, worker, packing, *times, ends, payload).to_frame()
        if kind == 1:
            ending, retry_s = odd(Ending.FAILED, chance.choice([*Ending, 9])), odd(0.0, chance.choice(TIMES), 0.3)
            texts = ("Error", chance.choice(["", "bad", "\ud800"]), "")
            return Failure(batch, first, stop, worker, 0, ending, retry_s, *times, *texts, canary.PICKLE).to_frame()
        if kind == 2:
            awaited = tuple(self._known(batches) for _ in range(chance.randrange(3)))
            end = position + chance.choice([1, 1, 2])
            return Pause(odd(position, self._edge(), 0.2), odd(end, self._edge(), 0.2), times[0], awaited).to_frame()
        if kind == 3:
            at = odd(position, self._edge(), 0.3)
            return number_frame(chance.choice([Kind.CUT, Kind.RESUME, Kind.RESUME, Kind.WAITS, Kind.UNFIT]), at)
        return frame(chance.randrange(256), chance.randbytes(chance.randrange(64)))

    def mutated(self, whole: bytes) -> bytes:
        """A frame with some of its bytes changed, and a header that fits, mostly."""
        chance = self.chance
        body, kind = bytearray(whole[HEADER_BYTES:]), whole[HEADER_BYTES - 1]
        for _ in range(chance.choice([1, 1, 1, 2, 8])):
            way = chance.randrange(6)
            at = chance.randrange(len(body) + 1)
            if way == 0 and body:
                body[at - 1] ^= 1 << chance.randrange(8)
            elif way == 1:
                del body[at : at + chance.choice([1, 4, 8, 64])]
            elif way == 2:
                body[at:at] = chance.randbytes(chance.choice([1, 4, 8, 64]))
            elif way == 3:
                body[at : at + 8] = (chance.choice(EDGES) & U64).to_bytes(8, "little")
            elif way == 4:
                body[at : at + 4] = (chance.choice(EDGES) & U32).to_bytes(4, "little")
            else:
                kind = chance.choice([*Kind, 0, 255])
        length = len(body) if chance.random() < 0.95 else chance.choice(EDGES) & U32
        return HEADER.pack(length, kind) + body

    def _odd(self, right: Any, odd: Any, share: float = 0.03) -> Any:
        return odd if self.chance.random() < share else right

    def _edge(self) -> int:
        chance = self.chance
        return chance.choice(EDGES) if chance.random() < 0.5 else chance.randrange(20)

    def _known(self, batches: list[int]) -> int:
        chance = self.chance
        return chance.choice(batches) if batches and chance.random() < 0.95 else chance.choice(EDGES)

    def _json(self, kind: Kind, **fields: Any) -> bytes:
        """A message of these fields, some of which are not what they should be."""
        chance = self.chance
        if chance.random() < 0.15 and fields:
            fields[chance.choice(list(fields))] = chance.choice(ODD_JSON)
        if chance.random() < 0.05 and fields:
            del fields[chance.choice(list(fields))]
        if chance.random() < 0.01:
            return frame(kind, chance.choice([DEEP.encode(), b'{"token": ' + b"9" * 5000 + b"}", b"{", b"[]", b"\xff"]))
        return json_frame(kind, **fields)

    def _payload(self, count: int) -> tuple[int, bytes]:
        """The values of so many calls, as nobody can read them without harm: each is a canary."""
        chance = self.chance
        packing = self._odd(chance.choice([*Packing]), 255)
        if packing != Packing.ROWS:
            return packing, canary.PICKLE
        payload = rows_payload([canary.PICKLE] * min(count, 40))
        if chance.random() < 0.05:
            at = 4 * chance.randrange(1 + min(count, 40))
            payload = payload[:at] + (chance.choice(EDGES) & U32).to_bytes(4, "little") + payload[at + 4 :]
        return packing, payload

    def _extras(self, count: int, batches: list[int]) -> bytes:
        chance = self.chance
        if chance.random() < 0.5:
            return b""

        def column(most: int = 3) -> bytes:
            return chance.choice([b"", b"", bytes([chance.randrange(most)]) * KEY_BYTES * count])

        on = [
            Dependency(self._odd(count - 1, U16), self._known(batches), 0, self._odd(chance.choice([1, count]), U16))
            for _ in range(chance.choice([0, 0, 1, 3]))
        ]
        made = Extras(
            running=column(),
            registration=column(),
            arguments=column(),
            cache=column(),
            items=chance.choice([b"", b"item" * count]),
            dependencies=dependencies_column(one._replace(index=one.index & U16, stop=one.stop & U16) for one in on),
            lineage=chance.choice([b"", b"12345678"]),
            common=self._odd(0, self._edge()),
            directory=chance.choice([b"", b"", b"/nowhere", b"?"]),
        )
        return made.to_bytes()

    def _batch(self, client: int, batches: list[int]) -> bytes:
        chance, odd = self.chance, self._odd
        self._made += 1
        number = odd((client << 29) + self._made, self._known(batches), 0.1)
        batches.append(number)
        count = odd(chance.choice([1, 1, 2, 3, 40]), self._edge() & U32)
        packing, payload = self._payload(min(count, 40))
        extras = self._extras(max(1, min(count, 40)), batches)
        group, parent = odd(0, self._edge()), odd(0, self._edge())
        task, registered = odd(chance.choice([1, 2, 3]), self._edge() & U32), odd(1.0, chance.choice(TIMES))
        return Batch(number, task, count, group, parent, registered, packing, payload, extras).to_frame()

    def task(self, key: int) -> bytes:
        """A task whose options are right."""
        chance = self.chance
        options = dict(OPTIONS)
        options["priority"] = chance.choice([0, 0, 5, -5])
        options["max_retries"] = chance.choice([0, 3])
        options["concurrency"] = chance.choice([0, 0, 2])
        options["max_running"] = chance.choice([1, 2])
        options["reroute"] = chance.random() < 0.8
        options["timeout_s"], options["expires_s"] = chance.choice([0.0, 0.01]), chance.choice([0.0, 0.0, 0.01])
        modules = [f"module {chance.randrange(3)} /nowhere/module.py"]
        surroundings = {"sys_path": ["/nowhere"], "cwd": "/nowhere", "file": "/nowhere/module.py", "modules": modules}
        name = f"module.task{key}"
        return json_frame(Kind.TASK, key=key, task_id=name, options=options, context=surroundings)

    def _task(self, client: int, batches: list[int]) -> bytes:
        chance = self.chance
        options = dict(OPTIONS)
        for name in chance.sample(list(options), chance.choice([0, 1, 3])):
            kind = type(options[name])
            fitting = {bool: [True, False], int: EDGES[:8], float: TIMES[:6]}[kind]
            options[name] = chance.choice(fitting if chance.random() < 0.8 else ODD_JSON)
        if chance.random() < 0.05:
            options["strange"] = 1
        surroundings: Any = {
            "sys_path": ["/nowhere"],
            "cwd": "/nowhere",
            "file": "",
            "modules": chance.choice(ODD_JSON),
        }
        if chance.random() < 0.1:
            surroundings = chance.choice(ODD_JSON)
        key = chance.choice([1, 2, 3])
        return self._json(Kind.TASK, key=key, task_id=f"module.task{key}", options=options, context=surroundings)

    def _cancel(self, client: int, batches: list[int]) -> bytes:
        chance = self.chance
        calls = [(self._known(batches), 0, self._odd(chance.choice([1, 2, 1024]), self._edge())) for _ in range(2)]
        return self._json(Kind.CANCEL, calls=calls, force=chance.random() < 0.5)

    def _query(self, client: int, batches: list[int]) -> bytes:
        chance = self.chance
        return self._json(
            Kind.QUERY,
            what=chance.choice(QUESTIONS),
            token=self._odd(1, self._edge()),
            batch=self._known(batches),
            index=self._odd(0, self._edge()),
            batches=[self._known(batches) for _ in range(chance.randrange(3))],
            task="module.task1",
            name=chance.choice(["a", "b"]),
            group=self._odd(7, self._edge()),
        )

    def _adopt(self, client: int, batches: list[int]) -> bytes:
        chance = self.chance
        known = [self._known(batches) for _ in range(chance.randrange(4))]
        return self._json(Kind.ADOPT, token=1, clients=[client, chance.randrange(100)], batches=known)

    def _small(self, client: int, batches: list[int]) -> bytes:
        chance = self.chance
        kind = chance.choice([Kind.SYNC, Kind.WATCH, Kind.COMMON, Kind.GOODBYE, *Kind])
        if kind == Kind.WATCH:
            return number_frame(kind, self._known(batches))
        if kind == Kind.COMMON:
            return bytes_frame(kind, self._edge(), canary.PICKLE)
        if kind in (Kind.HOLD, Kind.RELEASE):
            references = [Reference(chance.randbytes(1) * 16, self._edge()) for _ in range(chance.randrange(4))]
            return frame(kind, to_column(references))
        if chance.random() < 0.5:
            return number_frame(kind, self._edge())
        return frame(kind, chance.randbytes(chance.randrange(40)))
