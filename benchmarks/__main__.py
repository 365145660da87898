"""Measure: every workload, every executor that is installed, in turns, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.executors import EXECUTORS
from benchmarks.measure import MISSING
from benchmarks.workloads import OURS_ALONE, WORKLOADS

HERE = Path(__file__).parent
TIMEOUT_S = 240
LEFT_OUT = {("bulk_map", name) for name in ("dask", "ray", "huey", "ProcessPoolExecutor(spawn)")} | {
    ("single_calls", "ProcessPoolExecutor(spawn)"),
    ("single_calls", "joblib"),  # It has no calls of their own, only maps.
}
"""A million calls take these longer than the whole of the rest."""


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--executor", nargs="*", choices=EXECUTORS, default=list(EXECUTORS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    figures: report.Figures = {}
    for workload in options.workload:
        executors = [name for name in options.executor if name == "pynenc" or workload not in OURS_ALONE]
        found: dict[str, list[float]] = {name: [] for name in executors}
        for _ in range(options.rounds):
            for name in executors:
                if (workload, name) in LEFT_OUT or (name == "bare" and workload not in ("long_calls", "short_calls")):
                    continue
                figure = measure(workload, name)
                if figure is not None:
                    found[name].append(figure)
        figures[workload] = {name: statistics.median(values) for name, values in found.items() if values}
        shown = ", ".join(f"{name} {report.shown(workload, value)}" for name, value in figures[workload].items())
        print(f"{workload}: {shown}", flush=True)
    print(report.write(figures, options.output, HERE / "history.jsonl"))


def measure(workload: str, executor: str) -> float | None:
    """The figure of one workload on one executor; None when it is not installed or takes too long."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "benchmarks.measure", workload, executor]
        environment = {**os.environ, "PYNENC__STATE_DIR": state, "PYTHONPATH": str(HERE.parent)}
        try:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"{workload}: {executor} took more than {TIMEOUT_S} s and is left out", file=sys.stderr)
            return None
    if done.returncode == MISSING:
        return None
    if done.returncode:
        if executor == "pynenc":
            done.check_returncode()
        print(f"{workload}: {executor} failed and is left out", file=sys.stderr)
        return None
    line = next(line for line in done.stdout.splitlines() if line.startswith("figure "))
    return float(line.removeprefix("figure "))


if __name__ == "__main__":
    main()
