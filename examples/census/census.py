"""A census of the running interpreter's standard library: every function, class, import and branch in it.

Run it with `pynenc run examples/census/census.py`. It analyses several thousand files of very different size, in parallel and
then serially, shows that both find the same, and how much time was saved.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

from analysis import Report, analyse

from pynenc import Pynenc

app = Pynenc("census")


@app.task
def analyse_file(path: str) -> Report:
    """Analyse one file, in a worker."""
    return analyse(path)


def library_files(limit: int | None) -> list[str]:
    """Every Python file of the standard library, what was installed beside it left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [str(path) for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    return files[:limit]


def main() -> int:
    """Take the census; the exit code is 1 when the parallel and the serial run disagree."""
    options = parse_options()
    if options.workers is not None:
        app.conf.num_workers = options.workers
    files = library_files(options.limit)

    began = time.perf_counter()
    reports = list(analyse_file.parallelize((path,) for path in files).results)
    parallel_s = time.perf_counter() - began

    show(reports)
    print(f"\n{len(files):,} files in parallel: {parallel_s:.2f} s, start of the workers included")
    if options.no_serial:
        return 0

    began = time.perf_counter()
    expected = [analyse(path) for path in files]
    serial_s = time.perf_counter() - began
    same = reports == expected
    print(f"{len(files):,} files serially:    {serial_s:.2f} s")
    print(f"time saved: {serial_s - parallel_s:.2f} s ({serial_s / parallel_s:.2f} times as fast)")
    print("both runs found the same" if same else "THE RUNS DIFFER")
    return 0 if same else 1


def show(reports: list[Report]) -> None:
    """Print what was found."""
    from rich.console import Console
    from rich.table import Table

    root = sysconfig.get_paths()["stdlib"]
    parsed = [report for report in reports if report.error is None]
    totals = Table(title=f"The standard library of Python {sys.version.split()[0]}")
    for name in ("files", "not parsed", "lines", "functions", "classes", "imports", "branching"):
        totals.add_column(name, justify="right")
    counts = [sum(getattr(report, name) for report in parsed) for name in ("lines", "functions", "classes", "imports")]
    branching = sum(report.complexity for report in parsed)
    totals.add_row(*(f"{n:,}" for n in (len(reports), len(reports) - len(parsed), *counts, branching)))

    packages: Counter[str] = Counter()
    for report in parsed:
        packages[Path(report.path).relative_to(root).parts[0]] += report.lines
    largest = Table("package", "lines", title="Largest packages")
    for package, lines in packages.most_common(5):
        largest.add_row(package, f"{lines:,}")

    complex_ones = Table("function", "where", "branching", title="Most complex functions")
    ranked = sorted(
        (r for r in parsed if r.most_complex), key=lambda r: -r.most_complex.complexity if r.most_complex else 0
    )
    for report in ranked[:5]:
        function = report.most_complex
        assert function is not None
        where = f"{Path(report.path).relative_to(root)}:{function.line}"
        complex_ones.add_row(function.name, where, str(function.complexity))

    console = Console()
    for table in (totals, largest, complex_ones):
        console.print(table)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, help="worker processes; default: the CPUs that may be used")
    parser.add_argument("--limit", type=int, help="analyse only so many files")
    parser.add_argument("--no-serial", action="store_true", help="leave the serial run out")
    return parser.parse_args()
