"""`pynenc status` and `pynenc show_config`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pynenc.cli.apps import find_app
from pynenc.exceptions import SupervisorLostError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from pynenc.app import Pynenc


def status(options: argparse.Namespace) -> int:
    """What the supervisor does just now, and how the calls of each task ended."""
    from rich.console import Console

    app = find_app(options.app)
    Console(highlight=False).print(Standing(app).view())
    app.close()
    return 0


class Standing:
    """Where an app stands just now, as it is shown.

    Args:
        app: Which app.

    Attributes:
        ended: How many calls have ended, of all that are stored.
    """

    def __init__(self, app: Pynenc) -> None:
        self._app = app
        self._report: dict[str, Any] | None = None
        with contextlib.suppress(SupervisorLostError):  # It has just ended.
            self._report = app.report()
        self._tasks = app.state_backend.counts_by_task()
        self._kept = app.state_backend.count_kept()
        self.ended = sum(one.succeeded + one.failed for one in self._tasks)

    def view(self, *more: str) -> Group:
        """All of it, with some lines more."""
        from rich.console import Group

        return Group(*self._supervisor(), *more, self._calls(), *self._stopped())

    def _supervisor(self) -> Iterator[RenderableType]:
        from rich.markup import escape

        yield f"app [bold]{escape(self._app.app_id)}[/], state in {escape(self._app.conf.state_path)}"
        report = self._report
        if report is None:
            yield "no supervisor runs"
            return
        yield (
            f"supervisor: pid {report['pid']}, {report['clients'] - 1} other clients, "
            f"{report['unfinished']:,} calls unfinished, {report['ready']:,} of them waiting"
        )
        if report["refused"]:
            yield f"{report['refused']:,} connections were closed because of what they sent; the log tells of them"
        yield _workers(report["workers"], report["memory_limit_bytes"])
        if report["blobs"]["blobs"] or report["blobs"]["memory_bytes"]:
            yield blobs_in_words(report["blobs"])

    def _calls(self) -> Table:
        from rich.table import Table

        table = Table("task", "calls", "succeeded", "failed", "unfinished", title="calls")
        for counts in self._tasks:
            left = counts.calls - counts.succeeded - counts.failed
            table.add_row(counts.task_id, *(f"{n:,}" for n in (counts.calls, counts.succeeded, counts.failed, left)))
        return table

    def _stopped(self) -> Iterator[RenderableType]:
        if self._kept:
            yield f"{self._kept:,} unfinished calls are kept: pynenc resume runs them"


def blobs_in_words(blobs: dict[str, Any]) -> str:
    """How many large values there are, where they lie, and who refers to them."""
    who = {"arguments": "unfinished calls", "results": "stored results", "client": "clients"}
    referred = ", ".join(f"{words} to {blobs[kind][0]} ({_size(blobs[kind][1])})" for kind, words in who.items())
    return (
        f"{blobs['blobs']} large values: {_size(blobs['memory_bytes'])} in shared memory (of {_size(blobs['budget_bytes'])}; warm "
        f"segments included), {_size(blobs['file_bytes'])} in files; referred to by {referred}"
    )


def show_config(options: argparse.Namespace) -> int:
    """Each value of the configuration and where it comes from."""
    from rich.console import Console
    from rich.table import Table

    from pynenc.conf.classes import config_classes
    from pynenc.conf.config_pynenc import ConfigPynenc
    from pynenc.conf.config_task import ConfigTask
    from pynenc.conf.sources import Config, explain

    app = find_app(options.app)
    configs: list[tuple[str, Config]] = [("ConfigPynenc", app.conf)]
    for kind in config_classes():
        if kind not in (ConfigPynenc, ConfigTask):
            configs.append((kind.__name__, kind(app.config_values, app.config_filepath)))
    configs += [(f"task {task_id}", task.conf) for task_id, task in sorted(app.tasks.items())]
    table = Table("field", "value", "source", title=f"configuration of app {app.app_id}")
    for name, config in configs:
        table.add_section()
        table.add_row(f"[bold]{name}[/]", "", "")
        for field, value, source in explain(config):
            table.add_row(field, _shown(value), source)
    Console().print(table)
    return 0


def _workers(workers: list[dict[str, Any]], limit: int | None) -> Table:
    from rich.table import Table

    from pynenc.system.memory import in_words

    table = Table("worker", "pid", "memory", "runs", "leased calls", title="workers")
    for worker in workers:
        table.add_row(
            str(worker["worker"]),
            str(worker["pid"]),
            in_words(worker["memory_bytes"]) + (f" of {in_words(limit)}" if limit else ""),
            worker["running"] or "-",
            str(worker["leased"]),
        )
    return table


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _shown(value: Any) -> str:
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else repr(value)
