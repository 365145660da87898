"""`pynenc resume`: run what earlier runs have left."""

from __future__ import annotations

import argparse

from pynenc.cli.apps import find_app
from pynenc.client.resuming import Resumed

SHOWN_EVERY_S = 0.1


def resume(options: argparse.Namespace) -> int:
    """Run the calls that nobody runs, and tell how they ended; 1 when some of them failed."""
    app = find_app(options.app)
    resumed = app.resume()
    if not resumed.calls:
        print(f"app {app.app_id!r}: nothing was left to be run")
        app.close()
        return 0
    if options.no_wait:
        print(f"app {app.app_id!r}: {resumed.calls:,} calls go on")
        app.close()
        return 0
    _wait(resumed)
    code = _tell(resumed)
    app.close()
    return code


def _wait(resumed: Resumed) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("resumed calls"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"waiting for {resumed.calls:,} calls", highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task("", total=resumed.calls)
        while not resumed.wait(SHOWN_EVERY_S if console.is_terminal else None):
            progress.update(shown, completed=resumed.calls - resumed.left)


def _tell(resumed: Resumed) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "succeeded", "failed", title="resumed calls")
    failed = 0
    for counts in resumed.counts:
        table.add_row(counts.task_id, f"{counts.succeeded:,}", f"{counts.failed:,}")
        failed += counts.failed
    Console().print(table)
    return 1 if failed else 0
