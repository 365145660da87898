"""What a worker has imported, and whether it is what the client of a call means. Runs in the worker's process.

A process has one module of a name. When another script means another file by that name, or a file has been written since
it was imported here, the worker runs none of those calls: a fresh one does, which has imported nothing yet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from pynenc.named_tuples import NamedTuple
from pynenc.system.origins import Origin, from_texts, origins, state_of


class Clash(NamedTuple):
    """A module that is another one here than where a call was made."""

    name: str
    here: str
    there: str

    @property
    def is_edited(self) -> bool:
        """Whether it is the same file in another state."""
        return self.here == self.there


class Imports:
    """Compares the modules here with those of clients."""

    def __init__(self) -> None:
        self._before = frozenset(sys.modules)
        self._accepted: dict[str, set[str]] = {}

    def clash(self, told: Iterable[str]) -> Clash | None:
        """The first module that is another one than a client has told; None when this worker can run its calls.

        What is in its file now is what a call gets: it does not matter that the client, or somebody who made the call long
        ago, had it in another state.
        """
        here = self._here()
        for name, theirs in from_texts(told).items():
            mine = here.get(name)
            if mine is None or theirs.state in self._states(name, mine):
                continue
            now = state_of(theirs.file)
            if now in self._states(name, mine) or (not now and mine.file == theirs.file):
                continue
            return Clash(name, mine.file, theirs.file)
        return None

    def imported(self, told: Iterable[str], before: frozenset[str]) -> None:
        """Modules were imported here for a call: they are the best that this client can get.

        They may be others than it has told, when a file was written meanwhile, or was found in another way there. A fresh
        worker would import the same.

        Args:
            told: What the client has told.
            before: The modules that were there before.
        """
        theirs = from_texts(told)
        for name in theirs.keys() & (self._here().keys() - before):
            self._accepted.setdefault(name, set()).update((theirs[name].state, state_of(theirs[name].file)))

    def _states(self, name: str, mine: Origin) -> set[str]:
        return {mine.state, *self._accepted.get(name, ())} - {""}

    def _here(self) -> dict[str, Origin]:
        """The user's modules that were imported since this process began."""
        return {name: origin for name, origin in origins().items() if name not in self._before}
