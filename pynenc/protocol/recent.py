"""What a worker keeps of what it was sent: supervisor and worker count alike, so nobody has to ask."""

from __future__ import annotations

KEPT = 4
"""So many are kept; the one that was sent first goes first."""


class Recent:
    """The numbers of the last few things that were sent.

    >>> recent = Recent()
    >>> [recent.add(number) for number in (1, 1, 2, 3, 4, 5, 1)]
    [True, False, True, True, True, True, True]
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def add(self, number: int) -> bool:
        """Note that this is sent; False when it is kept still."""
        if number in self._numbers:
            return False
        self._numbers.append(number)
        del self._numbers[:-KEPT]
        return True

    def __contains__(self, number: object) -> bool:
        return number in self._numbers
