"""`pynenc runner`: a supervisor that stays."""

from __future__ import annotations

import argparse
import contextlib
import signal
from types import FrameType
from typing import TYPE_CHECKING

from pynenc.cli.apps import find_app
from pynenc.client.paths import paths_of

if TYPE_CHECKING:
    from pynenc.app import Pynenc


def start(options: argparse.Namespace) -> int:
    """Start a supervisor that stays when its clients have left."""
    app = find_app(options.app)
    if options.workers is not None:
        app.conf.num_workers = options.workers
    if options.foreground:
        return _stay(app)
    log = paths_of(app.conf.state_path, app.app_id).log
    pid = app.start_supervisor(log=log)
    print(f"supervisor of app {app.app_id!r} started: pid {pid}, its log is {log}")
    return 0


def stop(options: argparse.Namespace) -> int:
    """End the supervisor when its work is done, or now."""
    app = find_app(options.app)
    if not app.stop_supervisor(now=options.now):
        print(f"no supervisor of app {app.app_id!r} runs")
        return 1
    print(f"the supervisor of app {app.app_id!r} ends" + ("" if options.now else " when its work is done"))
    return 0


def _stay(app: Pynenc) -> int:
    """Start a supervisor that ends with this process, and wait for its end."""
    import psutil

    begun: list[psutil.Process] = []
    asked: list[int] = []

    def end_if_asked() -> None:
        for process in begun if asked else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        end_if_asked()

    # From before there is one: a signal that ended this process alone would leave the supervisor to itself.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask)
    pid = app.start_supervisor(log=None)
    with contextlib.suppress(psutil.NoSuchProcess):
        begun.append(psutil.Process(pid))
    end_if_asked()
    for process in begun:
        process.wait()
    return 0
