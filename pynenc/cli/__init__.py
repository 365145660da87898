"""The command line: `pynenc run`, `runner`, `resume`, `status`, `monitor`, `show_config`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pynenc.exceptions import PynencError

LONGEST_S = 1e6
"""The system takes no wait that is much longer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when it did what was asked, 1 with a sentence on standard error when not."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
    except PynencError as error:
        print(f"pynenc: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        from pynenc.client import process

        process.say("interrupted", process.interrupt_all())
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    from pynenc.cli import monitor, render, resume, run, runner, show

    parser = argparse.ArgumentParser(prog="pynenc", description="Tasks for a single machine.")
    parser.add_argument(
        "--app",
        metavar="MODULE.APP",
        help="the app, as module.name; when it is left out, the working directory must have exactly one",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("run", help="import a script under its module name and call its main()")
    command.add_argument("script", help="path of a Python file")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script finds in sys.argv")
    command.set_defaults(command=run.run)

    command = commands.add_parser("runner", help="start or stop a supervisor that stays")
    actions = command.add_subparsers(required=True, metavar="ACTION")
    start = actions.add_parser("start", help="start a supervisor that stays; scripts of the same app use it")
    start.add_argument("--workers", type=int, metavar="N", help="how many worker processes (num_workers)")
    start.add_argument("--foreground", action="store_true", help="stay here and print here, until Ctrl-C")
    start.set_defaults(command=runner.start)
    stop = actions.add_parser("stop", help="end the supervisor when its work is done")
    stop.add_argument("--now", action="store_true", help="end it at once; what had not run is kept")
    stop.set_defaults(command=runner.stop)
    shown = actions.add_parser("show_config", help="each value of the configuration and where it comes from")
    shown.set_defaults(command=show.show_config)

    command = commands.add_parser("resume", help="run what earlier runs have left, and tell how it ended")
    command.add_argument("--no-wait", action="store_true", help="have it go on in the background")
    command.set_defaults(command=resume.resume)

    command = commands.add_parser("status", help="what the supervisor does, and how the calls of each task ended")
    command.set_defaults(command=show.status)
    actions = command.add_subparsers(metavar="ACTION")
    drawn = actions.add_parser("render", help="the statuses that an invocation can have, and what follows what")
    drawn.add_argument("--format", choices=["text", "svg", "markdown"], default="text")
    drawn.set_defaults(command=render.render)

    command = commands.add_parser("monitor", help="what status shows, again and again, until Ctrl-C")
    command.add_argument(
        "--interval", type=seconds, default=1.0, metavar="SECONDS", help="how long between two looks (1)"
    )
    command.add_argument("--count", type=int, metavar="N", help="end after so many looks")
    command.set_defaults(command=monitor.monitor)

    command = commands.add_parser("show_config", help="each value of the configuration and where it comes from")
    command.set_defaults(command=show.show_config)
    return parser


def seconds(given: str) -> float:
    seconds = float(given)
    if not 0 < seconds < LONGEST_S:
        raise ValueError
    return seconds


def use_working_directory() -> None:
    """Let modules of the working directory be imported, as `python -m` does."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
