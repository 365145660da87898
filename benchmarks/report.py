"""Figures to a table, a chart and a line of history."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tasks import LARGE_BYTES

PACKAGES = ("pynenc", "numpy", "joblib", "mpire", "distributed", "ray", "huey")


class Bar(NamedTuple):
    """What ours has to reach in a workload: at most, or at least, so many times a peer's figure, or a fixed one.

    With `speed`, figures are seconds and the ratio is theirs over ours; else it is ours over theirs.
    """

    workload: str
    peer: str | None
    limit: float
    speed: bool
    text: str


BARS = (
    Bar("round_trip", "fastest", 0.7, False, "≤ 0.7 × the fastest peer"),
    Bar("single_calls", "Pool", 4, True, "≥ 4 × Pool"),
    Bar("single_calls", "ProcessPoolExecutor", 15, True, "≥ 15 × ProcessPoolExecutor"),
    Bar("bulk_map", "ProcessPoolExecutor", 1.0, True, "≥ 1.0 × ProcessPoolExecutor"),
    Bar("bulk_map", "Pool", 0.4, True, "≥ 0.4 × Pool"),
    Bar("bulk_map", "joblib", 6, True, "≥ 6 × joblib"),
    Bar("long_calls", "bare", 0.97, True, "≥ 0.97 of bare processes"),
    Bar("short_calls", "bare", 0.93, True, "≥ 0.93 of bare processes"),
    Bar("skewed_tail", None, 1.05, False, "≤ 1.05 × the lower bound"),
    Bar("cold_start", "ProcessPoolExecutor(spawn)", 1.0, False, "≤ ProcessPoolExecutor(spawn)"),
    Bar("worker_memory", None, 12e6, False, "≤ 12 MB"),
    Bar("supervisor_memory", None, 200e6, False, "≤ 200 MB"),
    Bar("client_memory", None, 1.0, False, "≤ 1 byte"),
    Bar("disk", None, 60, False, "≤ 60 bytes"),
    Bar("queued_flat", None, 1.3, False, "≤ 1.3"),
    Bar("large_argument", "Pool", 10, True, "≥ 10 × Pool"),
    Bar("large_argument", "fastest", 1.0, False, "≤ the fastest peer"),
    Bar("large_result", "Pool", 10, True, "≥ 10 × Pool"),
    Bar("large_result", "fastest", 1.0, False, "≤ the fastest peer"),
    Bar("shared_array", "joblib", 1.0, False, "≤ joblib"),
    Bar("shared_growth", None, 1.1, False, "≤ 1.1 × the array"),
)

Figures = dict[str, dict[str, float]]


def judge(bar: Bar, figures: Figures) -> tuple[float, bool] | None:
    """The ratio (or the figure) that a bar is about, and whether it is reached; None when a figure is missing.

    >>> judge(BARS[1], {"single_calls": {"pynenc": 1.0, "Pool": 5.0}})
    (5.0, True)
    """
    found = figures.get(bar.workload, {})
    if "pynenc" not in found:
        return None
    if bar.peer is None:
        return found["pynenc"], found["pynenc"] <= bar.limit
    peers = {name: value for name, value in found.items() if name not in ("pynenc", "bare")}
    theirs = min(peers.values(), default=None) if bar.peer == "fastest" else found.get(bar.peer)
    if theirs is None:
        return None
    if bar.speed:
        ratio = theirs / found["pynenc"]
        return ratio, ratio >= bar.limit
    ratio = found["pynenc"] / theirs
    return ratio, ratio <= bar.limit


def shown(workload: str, value: float) -> str:
    """A figure with its unit."""
    if workload.endswith("memory") and value > 1e3:
        return f"{value / 1e6:.1f} MB"
    if workload in ("disk", "client_memory"):
        return f"{value:.2f} bytes"
    if workload in ("large_argument", "large_result"):
        return f"{LARGE_BYTES / value / 1e9:.2f} GB/s"
    if workload in ("skewed_tail", "queued_flat", "shared_growth"):
        return f"{value:.2f}"
    return f"{value * 1e6:,.0f} µs" if value < 0.01 else f"{value:.3f} s"


def markdown(figures: Figures, facts: dict[str, Any]) -> str:
    """The tables: figures of all executors, and the bars."""
    executors = list(dict.fromkeys(name for found in figures.values() for name in found))
    lines = [
        f"{facts['date']}, {facts['cpus']} × {facts['cpu']}, {facts['system']}, Python {facts['python']}, "
        f"commit {facts['commit']}. "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ".",
        "",
        "| workload | " + " | ".join(executors) + " |",
        "| --- |" + " --- |" * len(executors),
    ]
    for workload, found in figures.items():
        cells = [shown(workload, found[name]) if name in found else "" for name in executors]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    lines += ["", "| bar | reached | |", "| --- | --- | --- |"]
    for bar in BARS:
        judged = judge(bar, figures)
        if judged is not None:
            value = f"{judged[0]:.2f} ×" if bar.peer else shown(bar.workload, judged[0])
            lines.append(f"| {bar.workload} {bar.text} | {value} | {'yes' if judged[1] else '**no**'} |")
    return "\n".join(lines) + "\n"


def machine_facts() -> dict[str, Any]:
    """Where and when this was measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "packages": versions,
    }


def chart(figures: Figures, path: Path) -> None:
    """A bar chart of speed relative to ours, on a logarithmic scale."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    compared = {
        workload: {name: found["pynenc"] / value for name, value in found.items() if name not in ("pynenc", "bare")}
        for workload, found in figures.items()
        if len(found) > 1 and "pynenc" in found
    }
    figure, axes = plt.subplots(1, len(compared), figsize=(4 * len(compared), 3.2), layout="constrained", squeeze=False)
    for axis, (workload, ratios) in zip(axes[0], compared.items(), strict=True):
        axis.barh(list(ratios), list(ratios.values()))
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(workload)
        axis.set_xlabel("speed (pynenc = 1)")
    figure.savefig(path)


def write(figures: Figures, directory: Path, history: Path) -> str:
    """Write JSON, Markdown and the chart, and add a line to the history; gives the Markdown."""
    facts = machine_facts()
    directory.mkdir(parents=True, exist_ok=True)
    text = markdown(figures, facts)
    (directory / "results.md").write_text(text)
    (directory / "results.json").write_text(json.dumps({"facts": facts, "figures": figures}, indent=1))
    chart(figures, directory / "results.svg")
    with history.open("a") as file:
        file.write(json.dumps({**facts, "figures": figures}) + "\n")
    return text


def _cpu_name() -> str:
    try:
        lines: Sequence[str] = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
