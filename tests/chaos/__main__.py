"""`python -m tests.chaos --seconds 60 --seed 7`: exit code 1 when anything is not as it should be."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.driver import Summary, run


def show(console: Console, summary: Summary) -> None:
    """A table of what happened, and what came of it."""
    table = Table("what", "times", title=f"chaos, seed {summary.seed}, {summary.seconds:.0f} s")
    for act, count in sorted(summary.acts.items()):
        table.add_row(act, f"{count:,}")
    table.add_row("[bold]kills[/]", f"[bold]{summary.kills:,}[/]", end_section=True)
    for name in ("rounds", "calls", "accepted", "runs", "reruns", "left"):
        table.add_row(name, f"{summary.counts[name]:,}")
    table.add_row("[bold]wrong[/]", f"[bold]{max(summary.counts['problems'], len(summary.problems)):,}[/]")
    console.print(table)


def main() -> int:
    """Run, show, and leave nothing but the books of a run that went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="one is drawn when none is given")
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="pc-"))
    os.environ.update(PYNENC__STATE_DIR=str(directory / "state"), PYNENC__NUM_WORKERS="2", TMPDIR=str(directory))
    summary = run(directory, options.seconds, seed, options.clients)
    console = Console()
    show(console, summary)
    if not summary.problems:
        shutil.rmtree(directory)
        return 0
    for problem in summary.problems:
        console.print(problem, markup=False, highlight=False)
    console.print(
        f"again: make chaos SECONDS={options.seconds:g} SEED={seed}; its books are in {directory}", highlight=False
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
