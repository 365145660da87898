"""`pynenc monitor`: what `pynenc status` shows, again and again."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time

from pynenc.cli.apps import find_app
from pynenc.cli.show import Standing

PAUSE_PARTS = 10
"""To look takes a while when very many calls are stored; between two looks lies at least so many times as long."""


def monitor(options: argparse.Namespace) -> int:
    """Show where the app stands until Ctrl-C, or so many times: in place in a terminal, else one below the other."""
    from rich.console import Console
    from rich.live import Live

    app = find_app(options.app)
    console = Console(highlight=False)
    is_in_place = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False) if is_in_place else None
    before: tuple[float, int] | None = None
    with contextlib.suppress(KeyboardInterrupt), live or contextlib.nullcontext():
        for shown in itertools.count(1):
            began = time.monotonic()
            standing = Standing(app)
            app.close()  # A supervisor ends with its last client, and who only looks is none.
            view = standing.view(*([_rate(before, (began, standing.ended))] if before else []))
            before = began, standing.ended
            if live is not None:
                live.update(view, refresh=True)
            else:
                console.print(view)
            if shown == options.count:
                break
            time.sleep(max(options.interval, PAUSE_PARTS * (time.monotonic() - began)))
    return 0


def _rate(before: tuple[float, int], now: tuple[float, int]) -> str:
    """How many calls end in a second.

    >>> _rate((1.0, 100), (3.0, 5100))
    '2,500 calls a second end'
    """
    return f"{max(0, now[1] - before[1]) / (now[0] - before[0]):,.0f} calls a second end"
