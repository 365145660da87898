"""One workload on one executor, in this process: `python -m benchmarks.measure WORKLOAD EXECUTOR` prints the figure."""

from __future__ import annotations

import sys

from benchmarks.workloads import WORKLOADS

MISSING = 3
"""The exit code when the executor is not installed."""


def main() -> int:
    """Measure and print."""
    workload, executor = sys.argv[1:3]
    try:
        print(f"figure {WORKLOADS[workload](executor)!r}")
    except ImportError as error:
        print(error, file=sys.stderr)
        return MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
