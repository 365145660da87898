"""How long a call waits before it is tried again."""

from __future__ import annotations


def backed_off(delay_s: float, factor: float, most_s: float, jitter: float, retries: int, chance: float) -> float:
    """The delay before the next attempt.

    Args:
        delay_s: The delay before the first retry, seconds.
        factor: By what it is multiplied for each further one.
        most_s: What it grows to at most, seconds.
        jitter: The share of it that is left to chance, so that calls that failed together do not come back together.
        retries: How many retries there were before.
        chance: A random number from 0 to 1.

    >>> [backed_off(1.0, 2.0, 5.0, 0.0, retries, 0.5) for retries in range(4)]
    [1.0, 2.0, 4.0, 5.0]
    >>> backed_off(1.0, 2.0, 5.0, 0.5, 0, 1.0)
    0.5
    """
    try:
        grown_s = delay_s * factor**retries
    except OverflowError:
        grown_s = most_s
    return min(grown_s, most_s) * (1 - jitter * chance)
