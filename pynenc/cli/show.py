"""`pynenc status` and `pynenc show_config`."""

from __future__ import annotations

import argparse
from typing import Any

from pynenc.cli.apps import find_app


def status(options: argparse.Namespace) -> int:
    """What the supervisor does just now, and how the calls of each task ended."""
    from rich.console import Console
    from rich.table import Table

    app = find_app(options.app)
    console = Console()
    report = app.report()
    console.print(f"app [bold]{app.app_id}[/], state in {app.conf.state_path}", highlight=False)
    if report is None:
        console.print("no supervisor runs")
    else:
        console.print(
            f"supervisor: pid {report['pid']}, {report['clients'] - 1} other clients, "
            f"{report['unfinished']:,} calls unfinished, {report['ready']:,} of them waiting",
            highlight=False,
        )
        if report["refused"]:
            console.print(
                f"{report['refused']:,} connections were closed because of what they sent; the log tells of them"
            )
        _print_workers(console, report["workers"], report["memory_limit_bytes"])
        if report["blobs"]["blobs"] or report["blobs"]["memory_bytes"]:
            console.print(blobs_in_words(report["blobs"]), highlight=False)
    table = Table("task", "calls", "succeeded", "failed", "unfinished", title="calls")
    for counts in app.state_backend.counts_by_task():
        left = counts.calls - counts.succeeded - counts.failed
        table.add_row(counts.task_id, *(f"{n:,}" for n in (counts.calls, counts.succeeded, counts.failed, left)))
    console.print(table)
    kept = app.state_backend.count_kept()
    if kept:
        console.print(f"{kept:,} unfinished calls are kept: pynenc resume runs them", highlight=False)
    app.close()
    return 0


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


def _print_workers(console: Any, workers: list[dict[str, Any]], limit: int | None) -> None:
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
    console.print(table)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _shown(value: Any) -> str:
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else repr(value)
